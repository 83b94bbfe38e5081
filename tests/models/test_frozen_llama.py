"""A Llama whose first layers are a module of their own is the same Llama."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.adapters import lora
from potara_jax.models import llama, publishing, weights
from potara_jax.models.llama import Llama, LlamaConfig, Text
from potara_jax.models.publishing import Form

WHOLE = LlamaConfig(vocabulary=11, width=8, hidden=8, depth=3, heads=2, key_heads=1)
SPLIT = dataclasses.replace(WHOLE, frozen=2)
TOKENS = jnp.array([[1, 5, 3, 7], [2, 2, 9, 0]])
TEXT = Text(TOKENS, jnp.array([[1, 3], [0, 2]]))
PLACES = jnp.broadcast_to(jnp.arange(4), TOKENS.shape)


@pytest.fixture(scope="module")
def params():
    return jax.jit(Llama(WHOLE).init)(jax.random.key(0), TEXT)["params"]


def read_all(config, params):
    """Logits of texts, and of tokens that are read into a cache one after another."""
    model = Llama(config)

    @jax.jit
    def compute(params):
        apply = lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs)
        cache, last = llama.empty_cache(config, 2, 4), jnp.zeros(2, jnp.int32)
        _, cache = apply(TOKENS[:, :2], PLACES[:, :2], cache, last, method="read")
        logits, cache = apply(
            TOKENS[:, 2:], PLACES[:, 2:], cache, last + 1, method="read"
        )
        hidden = apply(TEXT, method="below")
        return apply(TEXT), apply(TEXT._replace(hidden=hidden)), logits, cache

    return compute(params)


def test_it_reads_texts_and_writes_as_the_whole_model_does(params):
    expected = read_all(WHOLE, params)
    outputs = read_all(SPLIT, llama.with_frozen(params, 2))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, outputs, expected)


def test_files_and_adapters_have_the_numbers_of_the_whole_models_layers(
    params, tmp_path
):
    split, table = llama.with_frozen(params, 2), llama.table_of(SPLIT)
    weights.save(tmp_path, split, table, llama.description_of(SPLIT))
    again = weights.load(tmp_path, llama.TABLE, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    jax.tree.map(
        np.testing.assert_array_equal, weights.load(tmp_path, table, split), split
    )
    sites = lora.find_sites(Llama(SPLIT), TEXT, targets="q_proj")
    mine = {"layers/self_attn/q_proj": sites["layers/self_attn/q_proj"]}
    adapter = lora.init(jax.random.key(1), mine, rank=2)
    form = Form(table, {}, {}, sites=mine, scale=1.0)
    names = publishing.as_peft(adapter, form)
    assert list(names) == ["model.layers.2.self_attn.q_proj"]
