"""What tiny BERTs compute, against what Hugging Face's transformers computed."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.adapters import lora
from potara_jax.models import bert, publishing, weights
from potara_jax.models.bert import Bert, BertConfig, Sentences
from potara_jax.models.publishing import Form

FIXTURES = Path(__file__).parent / "fixtures"
HEADED = "bert", "roberta", "distilbert"
HEADLESS = "bert-older", "xlm-roberta"
LENGTHS = 8, 20


@functools.cache
def golden(name):
    with np.load(FIXTURES / name / "golden.npz") as file:
        return {key: jnp.asarray(x) for key, x in file.items()}


def sentences(name, length):
    arrays = golden(name)
    return Sentences(*(arrays[f"{part}_{length}"] for part in Sentences._fields))


@functools.cache
def loaded(name):
    """A model and its parameters; without a head in the files, it reads the mean."""
    pooling = "mean" if name in HEADLESS else None
    description = weights.read_config(FIXTURES / name)
    config = bert.config_of(description, pooling=pooling)
    model = Bert(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), sentences(name, 8))
    body = dict(shapes["params"])
    head = body.pop("head") if name in HEADLESS else {}
    params = weights.load(FIXTURES / name, bert.table_of(config), body)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), head)
    return model, params | ({"head": zeros} if head else {})


def states(model, params, inputs):
    """All hidden states, and the logits."""
    logits, seen = model.apply({"params": params}, inputs, capture_intermediates=True)
    outputs = seen["intermediates"]
    names = ["embeddings", *(f"layer_{i}" for i in range(model.config.depth))]
    return [outputs[name]["__call__"][0] for name in names], logits


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", [*HEADED, *HEADLESS])
def test_a_bert_equals_transformers(name, length):
    inputs = sentences(name, length)
    computed, logits = states(*loaded(name), inputs)
    real = np.arange(length) < inputs.count[:, None]
    expected = golden(name)[f"hidden_{length}"]
    assert len(computed) == len(expected)
    for ours, theirs in zip(computed, expected, strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5, rtol=1e-5)
    if name in HEADED:
        wanted = golden(name)[f"logits_{length}"]
        np.testing.assert_allclose(logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_padding_changes_nothing(pooling):
    model, params = loaded("bert")
    model = Bert(model.config.__class__(**vars(model.config) | {"pooling": pooling}))
    short = sentences("bert", 8)
    apply = lambda x: model.apply({"params": params}, x)
    before = apply(short)
    other = short.tokens.at[1, 5:].set(7).at[2, 4:].set(9)
    np.testing.assert_array_equal(apply(short._replace(tokens=other)), before)
    longer = jnp.pad(short.tokens, ((0, 0), (0, 8)), constant_values=3)
    after = apply(short._replace(tokens=longer))
    np.testing.assert_allclose(after, before, atol=1e-5, rtol=1e-5)


def test_the_second_sentence_has_another_type():
    model, params = loaded("bert")
    pair = sentences("bert", 8)
    apply = lambda x: model.apply({"params": params}, x)
    single = apply(pair._replace(first=None))
    np.testing.assert_array_equal(apply(pair._replace(first=pair.count)), single)
    assert np.abs(apply(pair) - single).max() > 1e-3


def test_the_mean_leaves_out_padding_and_accumulates_in_float32():
    x = jnp.arange(24.0, dtype=jnp.bfloat16).reshape(2, 4, 3)
    mean = bert.pool(x, jnp.array([2, 4]), "mean")
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean, [[1.5, 2.5, 3.5], [16.5, 17.5, 18.5]])
    many = jnp.ones((1, 1000, 1), jnp.bfloat16)  # a bfloat16 sum stops at 256
    assert bert.pool(many, jnp.array([1000]), "mean") == 1
    assert bert.pool(many, jnp.array([0]), "mean") == 0


def test_a_sequence_longer_than_the_positions_is_refused():
    model, params = loaded("roberta")
    tokens = jnp.zeros((1, 24), jnp.int32)
    with pytest.raises(ValueError, match="24 tokens are more than the model's 22"):
        model.apply({"params": params}, Sentences(tokens, jnp.array([24])))


def test_remat_and_bfloat16_change_only_rounding():
    model, params = loaded("bert")
    inputs, labels = sentences("bert", 8), jnp.arange(3)

    def gradient(**changes):
        other = Bert(BertConfig(**vars(model.config) | changes))

        def loss(params):
            logits = other.apply({"params": params}, inputs).astype(jnp.float32)
            return -jax.nn.log_softmax(logits)[jnp.arange(3), labels].mean()

        return jax.jit(jax.grad(loss))(params)["head"]["kernel"]

    exact = gradient()
    np.testing.assert_allclose(gradient(remat=True), exact, atol=1e-5)
    rough = np.abs(gradient(dtype="bfloat16") - exact).max()
    assert 0 < rough < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", [*HEADED, *HEADLESS])
def test_a_described_bert_is_itself(name):
    config = loaded(name)[0].config
    names = [str(n) for n in range(config.classes)]
    assert bert.config_of(bert.description_of(config, names=names)) == config


TARGETS = ("attention/(query|key|value|out)", "mlp/(up|down)")


def exported(name, whole=("head",)):
    """A base, an adapter of all layers, and their form."""
    model, params = loaded(name)
    sites = lora.find_sites(model, sentences(name, 8), targets=TARGETS)
    adapter = lora.init(jax.random.key(1), sites, rank=2)
    adapter |= lora.trained_modules(params, whole)
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    description = bert.description_of(model.config, names="abc")
    return (
        params,
        adapter,
        Form(bert.table_of(model.config), description, {}, sites, 0.5),
    )


@pytest.mark.parametrize("name", HEADED)
def test_an_adapter_is_folded_and_read_back(name, tmp_path):
    model, inputs = loaded(name)[0], sentences(name, 8)
    params, adapter, form = exported(name)
    assert len(form.sites) == 12
    expected = lora.bind(model, scale=form.scale)(params, adapter, inputs)
    publishing.write_folded(tmp_path / "model", params, adapter, form)
    again = weights.load(tmp_path / "model", form.table, params)
    computed = model.apply({"params": again}, inputs)
    np.testing.assert_allclose(computed, expected, atol=1e-5, rtol=1e-5)


NAMES = json.loads((FIXTURES / "module_names.json").read_text())


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", HEADED)
def test_modules_are_called_as_in_transformers(name, version):
    """See `make_module_names`: PEFT looks for an adapter's modules by these names."""
    _, adapter, form = exported(name, ("pooler", "head"))
    modules = publishing.as_peft(adapter, form, transformers=version)
    assert sorted(modules) == NAMES[str(version)][name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "electra"}, "model_type is 'electra'"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ({"position_embedding_type": "relative_key"}, "not absolute"),
        ({"is_decoder": True}, "must be an encoder"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
        ({"pooling": "max"}, "pooling is 'max': it must be one of mean, cls, pooler"),
    ],
)
def test_other_models_are_refused(change, message):
    description = weights.read_config(FIXTURES / "bert") | change
    with pytest.raises(ValueError, match=message):
        bert.config_of(description)
