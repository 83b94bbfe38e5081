"""What tiny models compute, against what Hugging Face's transformers computed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.models import llama, vit, weights
from potara_jax.models.decoding import greedy
from potara_jax.models.llama import Llama, Text

FIXTURES = Path(__file__).parent / "fixtures"
LANGUAGE = "llama", "llama-untied", "qwen2", "qwen3"


def golden(name):
    with np.load(FIXTURES / name / "golden.npz") as file:
        return dict(file)


def language(name):
    config = llama.config_of(weights.read_config(FIXTURES / name))
    model, tokens = Llama(config), jnp.asarray(golden(name)["tokens"])
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    text = Text(tokens, places)
    shapes = jax.eval_shape(model.init, jax.random.key(0), text)["params"]
    return model, weights.load(FIXTURES / name, llama.TABLE, shapes), text


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_equals_transformers(name):
    model, params, text = language(name)
    states = lambda module, method: (
        method == "__call__" and isinstance(module, llama.Layer)
    )
    logits, seen = model.apply({"params": params}, text, capture_intermediates=states)
    reference = golden(name)
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-5, rtol=1e-5)
    layers = seen["intermediates"]["layers"]["__call__"][0][0]
    inner = reference["hidden"][1:-1]  # the last one includes the norm
    np.testing.assert_allclose(layers[: len(inner)], inner, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LANGUAGE)
def test_frequencies_are_those_of_transformers(name):
    config = llama.config_of(weights.read_config(FIXTURES / name))
    np.testing.assert_allclose(
        llama.frequencies(config), golden(name)["frequencies"], rtol=1e-6
    )


@pytest.mark.parametrize("name", LANGUAGE)
def test_generation_is_the_same_token_by_token(name):
    model, params, _ = language(name)
    expected = golden(name)["generated"]
    prompt = jnp.pad(jnp.asarray(expected[:, :9]), ((0, 0), (0, 3)))  # padded behind
    new = expected.shape[1] - 9
    read = lambda *args: model.apply({"params": params}, *args, method="read")
    cache = llama.empty_cache(model.config, 1, 12 + new)
    decode = jax.jit(lambda p: greedy(read, cache, p, jnp.array([9]), max_tokens=new))
    np.testing.assert_array_equal(decode(prompt), expected[:, 9:])


def test_an_answer_ends_with_its_stop_and_others_go_on():
    model, params, _ = language("llama")
    expected = golden("llama")["generated"][0]
    stop = int(expected[12])
    short = int(np.flatnonzero(expected[9:] == stop)[0])
    prompts = jnp.stack(
        [jnp.asarray(expected[:9]), jnp.flip(jnp.asarray(expected[:9]))]
    )
    read = lambda *args: model.apply({"params": params}, *args, method="read")
    cache = llama.empty_cache(model.config, 2, 20)
    written = greedy(read, cache, prompts, jnp.array([9, 9]), max_tokens=8, stop=stop)
    np.testing.assert_array_equal(written[0, :short], expected[9 : 9 + short])
    assert (written[0, short:] == stop).all()


def test_sequences_in_one_row_do_not_see_each_other():
    model, params, text = language("llama")
    apart = model.apply({"params": params}, text)
    first, second = text.tokens[:1, :10], text.tokens[1:2, :14]
    segment = jnp.array([[1] * 10 + [2] * 14])
    row = Text(jnp.concatenate([first, second], 1), text.at[:1], segment)
    together = model.apply({"params": params}, row)
    np.testing.assert_allclose(together[0, :10], apart[0, :10], atol=1e-5)
    np.testing.assert_allclose(together[0, 10:], apart[1, :14], atol=1e-5)


def test_texts_in_one_row_can_follow_the_same_one():
    model, params, text = language("llama")
    prompt, first = text.tokens[:1, :8], text.tokens[1:2, 8:11]
    second = text.tokens[1:2, 11:15]
    apart = [
        model.apply(
            {"params": params}, Text(jnp.concatenate([prompt, x], 1), text.at[:1])
        )
        for x in (first, second)
    ]
    row = jnp.concatenate([prompt, first, second], 1)
    at, segment = jnp.arange(15)[None], jnp.array([[0] * 8 + [1] * 3 + [2] * 4])
    together = model.apply({"params": params}, Text(row, at, segment))
    np.testing.assert_allclose(together[0, :11], apart[0][0, :11], atol=1e-5)
    np.testing.assert_allclose(together[0, 11:], apart[1][0, 8:12], atol=1e-5)


def test_no_token_sees_what_comes_after_it():
    model, params, text = language("qwen3")
    logits = lambda x: model.apply({"params": params}, text._replace(tokens=x))
    changed = logits(text.tokens.at[:, 10].set(5))
    np.testing.assert_array_equal(changed[:, :10], logits(text.tokens)[:, :10])


def loaded(name, model, table):
    image = jnp.asarray(golden(name)["images"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = weights.load(FIXTURES / name, table, shapes)
    return model.apply({"params": params}, image, capture_intermediates=True)


def test_a_vit_equals_transformers():
    config = vit.config_of(weights.read_config(FIXTURES / "vit"))
    logits, seen = loaded("vit", vit.ViT(config), vit.TABLE)
    reference = golden("vit")
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-5, rtol=1e-5)
    for index in range(config.depth):
        block = seen["intermediates"][f"block_{index}"]["__call__"][0]
        np.testing.assert_allclose(block, reference["hidden"][index + 1], atol=1e-5)


def test_a_vit_without_a_head_takes_one_of_any_size():
    folder = FIXTURES / "vit-headless"
    config = vit.config_of(weights.read_config(folder), classes=7)
    model, image = vit.ViT(config), jnp.asarray(golden("vit-headless")["images"])
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    body = {name: x for name, x in params.items() if name != "head"}
    body = weights.load(folder, vit.TABLE, body)
    params = body | {"head": params["head"]}
    _, seen = model.apply({"params": params}, image, capture_intermediates=True)
    normed = seen["intermediates"]["norm"]["__call__"][0]
    expected = golden("vit-headless")["features"]
    np.testing.assert_allclose(normed, expected, atol=1e-5, rtol=1e-5)
