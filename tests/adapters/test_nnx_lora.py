"""Adapters of `flax.nnx.LoRA`, really run, and of Qwix: see `make_qwix_fixtures`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from potara_jax.adapters import bind, from_nnx_lora, peft, to_nnx_lora, variables
from tests.adapters.make_qwix_fixtures import ALPHA, FILE, RANK, Layers
from tests.helpers import assert_close, dense, normal

GOLDEN = load_file(FILE)


def golden(prefix):
    keys = [key for key in GOLDEN if key.startswith(f"{prefix}/")]
    return unflatten_dict({tuple(key.split("/")[1:]): GOLDEN[key] for key in keys})


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


# --- Qwix and Tunix ------------------------------------------------------------------


def test_an_adapter_of_qwix_computes_what_qwix_computes():
    apply = jax.jit(
        bind(nnx.eval_shape(lambda: Layers(nnx.Rngs(0))), scale=ALPHA / RANK)
    )
    base, adapter = {"params": golden("base")}, from_nnx_lora(golden("lora"))
    assert_close(apply(base, adapter, GOLDEN["inputs"]), GOLDEN["outputs"], atol=1e-5)
    none = jax.tree.map(jnp.zeros_like, adapter)
    assert_close(apply(base, none, GOLDEN["inputs"]), GOLDEN["base_outputs"], atol=1e-5)
    assert not np.allclose(GOLDEN["outputs"], GOLDEN["base_outputs"], atol=0.1)


def test_an_adapter_of_qwix_returns_to_it_bit_by_bit():
    state = golden("lora")
    again = to_nnx_lora(from_nnx_lora(state), state)
    same(again, state)
    assert again["down"]["kernel_lora_a"].shape == (3, 2, RANK)


def test_an_adapter_of_qwix_is_written_for_peft(tmp_path):
    adapter, scale = from_nnx_lora(golden("lora")), ALPHA / RANK
    scaled = {
        path.replace("/", "."): {"a": entry["a"], "b": scale * entry["b"]}
        for path, entry in adapter.items()
    }
    peft.write(tmp_path / "peft", scaled)
    read = peft.read(tmp_path / "peft").adapter["attention.query"]
    assert_close(dense(read), scale * dense(adapter["attention/query"]), atol=1e-6)


def test_a_tree_of_tunix_keeps_the_axes_of_its_einsums():
    """Tunix calls the weight of its `Einsum` `w`; heads are axes of their own."""
    rng = np.random.default_rng(0)
    shapes = {"q_proj": ((8, 2), (2, 4, 3)), "o_proj": ((4, 3, 2), (2, 8))}
    layer = {
        name: {"w_lora_a": normal(rng, a), "w_lora_b": normal(rng, b)}
        for name, (a, b) in shapes.items()
    }
    state = {"layers": {0: {"attn": layer}}}
    adapter = from_nnx_lora(state)
    query, out = (adapter[f"layers/0/attn/{name}"] for name in shapes)
    weight = jnp.einsum("dr,rnh->dnh", *layer["q_proj"].values())
    assert_close(dense(query), weight.reshape(8, 12), atol=1e-5)
    weight = jnp.einsum("nhr,rd->nhd", *layer["o_proj"].values())
    assert_close(dense(out), weight.reshape(12, 8), atol=1e-5)
    same(to_nnx_lora(adapter, state), state)


# --- Flax ----------------------------------------------------------------------------


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def adapted(plain):
    """The same model with LoRA in both ways that Flax has."""
    model = nnx.clone(plain)
    rngs = nnx.Rngs(1)
    model.hidden = nnx.LoRA(4, 2, 6, base_module=model.hidden, rngs=rngs)
    model.head = nnx.LoRALinear(6, 3, lora_rank=3, rngs=rngs)
    nnx.update(model.head, nnx.state(plain.head))
    for layer in (model.hidden, model.head.lora):
        layer.lora_b[...] = normal(np.random.default_rng(2), layer.lora_b.shape)
    return model


PLAIN = Plain(nnx.Rngs(0))
MODEL, X = adapted(PLAIN), normal(np.random.default_rng(3), (5, 4))


def test_an_adapter_of_flax_computes_on_the_plain_model_what_it_does_in_its_own():
    adapter = from_nnx_lora(MODEL)
    assert set(adapter) == {"hidden", "head"}
    assert_close(bind(PLAIN, scale=1.0)(variables(PLAIN), adapter, X), MODEL(X))
    assert not np.allclose(PLAIN(X), MODEL(X), atol=0.1)
    same(from_nnx_lora(nnx.state(MODEL, nnx.LoRAParam)), adapter)


def test_another_adapter_is_put_into_a_model_of_flax():
    model = nnx.clone(MODEL)
    other = jax.tree.map(lambda x: 2 * x + 1, from_nnx_lora(model))
    state = to_nnx_lora(other, model)
    nnx.update(model, state)
    same(from_nnx_lora(model), other)
    assert isinstance(model.head.lora.lora_a, nnx.LoRAParam)
    assert_close(
        bind(PLAIN, scale=1.0)(variables(PLAIN), other, X), model(X), rtol=1e-5
    )


def test_factors_in_bfloat16_become_float32_and_return_to_the_bit():
    state = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), nnx.state(MODEL, nnx.LoRAParam)
    )
    adapter = from_nnx_lora(state)
    assert {x.dtype for x in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    same(to_nnx_lora(adapter, state), state)


def test_factors_of_clients_are_stacked_before_or_after():
    state = nnx.state(MODEL, nnx.LoRAParam)
    states = [jax.tree.map(lambda x, i=i: x + i, state) for i in range(4)]
    stack = lambda *x: jnp.stack(x)
    adapter = from_nnx_lora(jax.tree.map(stack, *states))
    assert adapter["hidden"]["a"].shape == (4, 4, 2)
    same(adapter, jax.tree.map(stack, *map(from_nnx_lora, states)))


@nnx.vmap(in_axes=0)
def stack_of_layers(rngs):
    return nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)


def test_layers_that_a_model_scans_over_have_leading_axes():
    """Two layers of rank 2: the weights tell a stack from the axes of an Einsum."""
    model = nnx.Sequential(nnx.split_rngs(splits=2)(stack_of_layers)(nnx.Rngs(0)))
    (entry,) = from_nnx_lora(model).values()
    assert {name: x.shape for name, x in entry.items()} == {
        "a": (2, 4, 2),
        "b": (2, 2, 4),
    }


# --- What cannot be converted --------------------------------------------------------


def pair(a, b, name="kernel_"):
    return {f"{name}lora_a": jnp.zeros(a), f"{name}lora_b": jnp.zeros(b)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": pair((4, 2), (3, 5))}, r"'x' has factors \[4, 2\] and \[3, 5\]"),
        ({"x": {"lora_a": jnp.zeros((4, 2))}}, "'x' has 'lora_a' alone"),
        (
            {"x": pair((4, 2), (2, 5), "w1_") | pair((5, 2), (2, 4), "w2_")},
            "'x' has factors of two weights, 'w1_lora_a' and 'w2_lora_a'",
        ),
        (
            {"x": pair((4, 2), (2, 5)) | {"qwix_rngs": {"count": jnp.zeros(())}}},
            "'x/qwix_rngs/count' is no lora_a or lora_b: pass the model",
        ),
        (
            {"x": pair((4, 5, 4), (4, 4, 5))},
            r"'x' .* of one layer or of layers in a stack",
        ),
        ({}, "adapt the model first"),
    ],
    ids=["shapes", "alone", "two weights", "dropout", "ambiguous", "none"],
)
def test_a_state_that_cannot_be_converted_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        from_nnx_lora(state)


def test_a_layer_whose_factors_are_of_no_single_matrix_is_refused():
    rngs = nnx.Rngs(0)
    conv = nnx.LoRA(2, 2, 4, base_module=nnx.Conv(2, 4, (3, 3), rngs=rngs), rngs=rngs)
    with pytest.raises(ValueError, match=r"'conv' .* a weight \[3, 3, 2, 4\]"):
        from_nnx_lora(nnx.Dict(conv=conv))
    experts = nnx.LinearGeneral(4, 5, batch_axis={0: 3}, rngs=rngs)
    grouped = nnx.Conv(4, 4, (3,), feature_group_count=2, rngs=rngs)
    einsum = nnx.Einsum("etd,edf->etf", (3, 4, 5), rngs=rngs)
    einsum.kernel_lora_einsum_str = "etd,edr,rf->etf"  # as Qwix does
    for layer, shape, reason in (
        (experts, (3, 4, 2), "a DenseGeneral with batch_dims"),
        (grouped, (3, 2, 2), "a grouped convolution"),
        (einsum, (3, 4, 2), "an Einsum 'etd,edr,rf->etf' with batch axes"),
    ):
        layer.kernel_lora_a = nnx.LoRAParam(jnp.zeros(shape))
        layer.kernel_lora_b = nnx.LoRAParam(jnp.zeros((2, layer.kernel.shape[-1])))
        with pytest.raises(ValueError, match=f"'layer' is {reason}"):
            from_nnx_lora(nnx.Dict(layer=layer))
    model = nnx.Dict(layer=nnx.Linear(2, 3, rngs=rngs))
    model.layer.magnitude = nnx.LoRAParam(jnp.zeros(3))
    with pytest.raises(ValueError, match="'layer/magnitude' is no lora_a"):
        from_nnx_lora(model)


def test_an_adapter_of_other_modules_or_shapes_is_refused():
    adapter = from_nnx_lora(MODEL)
    refused = {
        "'tail' has no factors in the model": adapter | {"tail": adapter["head"]},
        "model's 'head' has factors, but none": {"hidden": adapter["hidden"]},
        r"'head' has .* must have .*\(6, 3\)": adapter | {"head": adapter["hidden"]},
        "'head' has .*'m'.* `algebra.plain`": adapter
        | {"head": adapter["head"] | {"m": jnp.eye(3)}},
    }
    for message, other in refused.items():
        with pytest.raises(ValueError, match=message):
            to_nnx_lora(other, MODEL)
