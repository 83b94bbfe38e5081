"""NNX models against Linen models of the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import potara_jax as pj
from potara_jax.adapters import lora, of_nnx, precision
from tests.helpers import assert_close

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 6, 2)), jnp.float32)
TARGETS = ("embed", "query", "out", "mix", "head")


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=(2, 2), padding="VALID", name="embed")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm")(
            x.reshape(len(x), -1, 4)
        )
        heads = nn.DenseGeneral((2, 3), name="query")(x)
        x = x + nn.DenseGeneral(4, axis=(-2, -1), name="out")(heads)
        x = nn.Einsum((4, 5), "blc,cd->bld", name="mix")(x)
        return nn.Dense(3, name="head")(x.mean(1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Conv(2, 4, (3, 3), strides=(2, 2), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.query = nnx.LinearGeneral(4, (2, 3), rngs=rngs)
        self.out = nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=rngs)
        self.mix = nnx.Einsum("blc,cd->bld", (4, 5), (5,), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.embed(x).reshape(len(x), -1, 4))
        x = self.mix(x + self.out(self.query(x)))
        return self.head(self.drop(x.mean(1)))


MODEL, TWIN = Nnx(nnx.Rngs(0)), Linen()
BASE = of_nnx.variables(MODEL)
SITES = lora.find_sites(MODEL, targets=TARGETS)


def adapter(rank=2, sites=SITES):
    """Factors at random, none of them zero."""
    fresh = lora.init(jax.random.key(0), sites, rank=rank)
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
    return jax.tree.map(noise, fresh)


def test_a_base_has_parameters_and_statistics_by_path_and_no_random_state():
    assert set(BASE) == {"params", "batch_stats"}
    assert BASE["params"]["query"]["kernel"].shape == (4, 2, 3)
    assert set(BASE["batch_stats"]["norm"]) == {"mean", "var"}
    assert "drop" not in BASE["params"]


def test_the_sites_are_those_of_the_linen_model():
    twin = lora.find_sites(TWIN, X, targets=TARGETS)
    assert {path: SITES[path] for path in sorted(SITES)} == dict(sorted(twin.items()))


def test_a_target_that_no_layer_has_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"'key' matches no module.*query"):
        lora.find_sites(MODEL, targets="key")


def test_outputs_and_gradients_are_those_of_the_linen_model():
    applies = [lora.bind(model, scale=0.7) for model in (MODEL, TWIN)]
    losses = [
        jax.jit(jax.value_and_grad(lambda a, fn=fn: (fn(BASE, a, X) ** 2).sum()))(
            adapter()
        )
        for fn in applies
    ]
    jax.tree.map(lambda x, y: assert_close(x, y, rtol=1e-5, atol=1e-5), *losses)


def test_folded_is_applied_and_the_model_is_as_it_was():
    apply = lora.bind(MODEL, scale=0.7)
    folded = lora.fold(BASE, adapter(), SITES, scale=0.7)
    assert_close(apply(folded, {}, X), apply(BASE, adapter(), X), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, of_nnx.variables(MODEL), BASE)


def test_a_head_that_is_trained_whole_replaces_the_bases():
    head = jax.tree.map(lambda x: x + 1, lora.trained_modules(BASE, ["head"]))
    entries = {"query": adapter()["query"], **head}
    applies = [lora.bind(model, scale=1.0) for model in (MODEL, TWIN)]
    assert_close(*(apply(BASE, entries, X) for apply in applies), atol=1e-5)


def test_a_base_in_int8_computes_what_it_does_in_linen():
    small = precision.to_int8(BASE, SITES)
    some = {path: adapter()[path] for path in ("query", "head")}
    ours, expected = (
        lora.bind(model, scale=0.7)(small, some, X) for model in (MODEL, TWIN)
    )
    assert_close(ours, expected, atol=1e-5)
    assert_close(ours, lora.bind(MODEL, scale=0.7)(BASE, some, X), atol=0.2)


def test_a_base_of_another_model_is_refused_with_the_array():
    apply = lora.bind(MODEL, scale=1.0)
    head = BASE["params"]["head"]
    wider = {"params": BASE["params"] | {"head": head | {"bias": jnp.zeros(4)}}}
    with pytest.raises(ValueError, match=r"has \[4\] at 'head/bias' .* has \[3\]"):
        apply(BASE | wider, {}, X)
    with pytest.raises(ValueError, match="nothing at 'norm/mean' in batch_stats"):
        apply(BASE["params"], {}, X)


def test_what_layers_read_is_that_of_the_linen_model():
    entries = {path: adapter()[path] for path in ("query", "mix", "head")}
    reads = [lora.bind_inputs(model, scale=1.0) for model in (MODEL, TWIN)]
    ours, expected = (read(BASE, entries, X) for read in reads)
    jax.tree.map(lambda x, y: assert_close(x, y, atol=1e-5), ours, expected)
    features = [
        lora.bind_input_of(model, "head", scale=1.0)(BASE, entries, X)
        for model in (MODEL, TWIN)
    ]
    assert_close(*features, atol=1e-5)
    with pytest.raises(ValueError, match="calls no module 'tail'"):
        lora.bind_input_of(MODEL, "tail", scale=1.0)(BASE, entries, X)


def test_clients_share_the_base_product_and_compile_once():
    clients = 7
    stacked = jax.tree.map(lambda x: jnp.stack([x] * clients), adapter())
    apply = lora.bind(MODEL, scale=1.0)
    run = jax.jit(jax.vmap(apply, in_axes=(None, 0, None)))
    text = run.lower(BASE, stacked, X).as_text()
    assert f"tensor<{clients}x5x3xf32>" not in text  # a head's kernel for each client
    first, again = run(BASE, stacked, X), run(BASE, stacked, X + 1)
    assert first.shape == again.shape == (clients, 3, 3)
    assert run._cache_size() == 1


class Block(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.inner(x))


class Listed(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(3)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Scanned(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(
            nnx.vmap(lambda rngs: Block(rngs), in_axes=0)
        )(rngs)

    def __call__(self, x):
        call = lambda x, block: block(x)
        step = nnx.scan(call, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return step(x, self.blocks)


def test_lists_and_scanned_stacks_of_layers_are_adapted_alike():
    listed, scanned = Listed(nnx.Rngs(1)), Scanned(nnx.Rngs(1))
    rows = X[:, 0, :2].reshape(3, 4)
    base = of_nnx.variables(listed)
    sites = lora.find_sites(listed, targets="inner")
    assert list(sites) == [f"blocks/{i}/inner" for i in range(3)]
    entries = adapter(sites=sites)
    stack = lambda *x: jnp.stack(x)
    blocks = base["params"]["blocks"]
    together = {"params": {"blocks": jax.tree.map(stack, *(blocks[k] for k in "012"))}}
    site = lora.find_sites(scanned, targets="inner")["blocks/inner"]
    assert site.stack == 1 and site.kernel == (3, 4, 4)
    one = {"blocks/inner": jax.tree.map(stack, *(entries[path] for path in sites))}
    ours = lora.bind(listed, scale=0.5)(base, entries, rows)
    assert_close(lora.bind(scanned, scale=0.5)(together, one, rows), ours, atol=1e-5)


def test_projections_of_attention_are_adapted():
    attention = nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=nnx.Rngs(2))
    sites = lora.find_sites(attention, targets=("query", "out"))
    assert set(sites) == {"query", "out"}
    base, x = of_nnx.variables(attention), X[..., :1].reshape(3, 9, 4)
    entries = adapter(sites=sites)
    apply = lora.bind(attention, scale=0.5)
    folded = lora.fold(base, entries, sites, scale=0.5)
    assert_close(apply(base, entries, x), apply(folded, {}, x), atol=1e-5)
    assert not np.allclose(apply(base, entries, x), attention(x))


def test_many_adapters_are_trained_as_on_the_linen_model():
    labels = jnp.arange(12) % 3
    inputs = jnp.tile(X, (4, 1, 1, 1)) * (1 + labels[:, None, None, None])
    examples = [(inputs[:6], labels[:6]), (inputs[6:], labels[6:])]
    settings = {"lora": pj.Lora(rank=2, targets=("query", "head")), "steps": 3}
    trained = [
        pj.train_adapters(
            pj.classification(model), BASE, examples, **settings, key=jax.random.key(3)
        )
        for model in (MODEL, TWIN)
    ]
    jax.tree.map(lambda x, y: assert_close(x, y, atol=1e-4), *trained)
