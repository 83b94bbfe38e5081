import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError

from potara_jax.adapters import lora, peft
from potara_jax.models import dinov2, llama, publishing, vit, weights
from potara_jax.models.llama import Llama, Text
from potara_jax.models.publishing import Form
from potara_jax.models.vit import ViT, ViTConfig

pytestmark = pytest.mark.slow

SCALE = 0.5
LLAMAS = {
    "llama": llama.LlamaConfig(40, 16, 24, 2, 4, 2, context=32),
    "scaled": llama.LlamaConfig(40, 16, 24, 2, 4, 2, scaling=llama.RopeScaling()),
    "qwen2": llama.LlamaConfig(40, 16, 24, 2, 4, 2, biases=True, tied=False),
    "qwen3": llama.LlamaConfig(40, 16, 24, 2, 4, 2, head_width=8, head_norms=True),
}
VIT = ViTConfig(patch=4, width=16, depth=2, heads=2, classes=3, grid=(2, 2))


def languages():
    """A Llama, texts, a base, an adapter of all its projections, and its form."""
    config = LLAMAS["llama"]
    text = Text(jnp.arange(12).reshape(2, 6) % 40, jnp.array([[2, 5]] * 2))
    model, targets = Llama(config), (".*_proj",)
    return of(model, text, targets, (), llama.TABLE, llama.description_of(config))


def images():
    """The same of a ViT whose head is trained too."""
    image = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
    targets = ("query", "out", "up")
    config = vit.description_of(VIT, side=8, colours=3, names="abc")
    return of(ViT(VIT), image, targets, ("head",), vit.TABLE, config)


def of(model, inputs, targets, trained, table, config):
    base = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
    sites = lora.find_sites(model, inputs, targets=targets)
    adapter = lora.init(jax.random.key(1), sites, rank=2)
    adapter |= lora.trained_modules(base, trained)
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
    form = Form(table, config, {"more.json": "{}"}, sites, SCALE)
    return model, inputs, base, jax.tree.map(noise, adapter), form


@pytest.mark.parametrize("make", [languages, images])
def test_a_folded_model_is_read_back_and_computes_the_same(make, tmp_path):
    model, inputs, base, adapter, form = make()
    expected = lora.bind(model, scale=SCALE)(base, adapter, inputs)
    publishing.write_folded(tmp_path / "model", base, adapter, form)
    assert (tmp_path / "model" / "more.json").read_text() == "{}"
    again = weights.load(tmp_path / "model", form.table, base)
    computed = lora.bind(model, scale=1.0)(again, {}, inputs)
    np.testing.assert_allclose(computed, expected, atol=1e-5)


@pytest.mark.parametrize("make", [languages, images])
def test_an_adapter_has_the_deltas_of_every_layer_by_name(make, tmp_path):
    base, adapter, form = make()[2:]
    names = {"base": "somewhere", "transformers": 4}  # the names of tensors in files
    publishing.write_adapter(tmp_path / "adapter", adapter, form, **names)
    read = peft.read(tmp_path / "adapter")
    assert read.config["base_model_name_or_path"] == "somewhere"
    publishing.write_base(tmp_path / "base", base, form)
    publishing.write_folded(tmp_path / "folded", base, adapter, form)
    stored = {n: tensors(tmp_path / n) for n in ("base", "folded")}
    for path, entry in read.adapter.items():
        if set(entry) == {"a", "b"}:
            before, after = (stored[n].pop(f"{path}.weight") for n in stored)
            np.testing.assert_allclose(
                after - before, (entry["a"] @ entry["b"]).T, atol=1e-5
            )
        else:
            for name, value in entry.items():
                key = f"{path}.{name}"
                stored["base"].pop(key)
                np.testing.assert_array_equal(stored["folded"].pop(key), value)
    jax.tree.map(np.testing.assert_array_equal, stored["base"], stored["folded"])


NAMES = json.loads((Path(__file__).parent / "fixtures/module_names.json").read_text())


@pytest.mark.parametrize("version", [4, 5])
def test_modules_are_called_as_in_transformers(version):
    """See `make_module_names`: a version in which they have other names finds none."""
    model, image = ViT(VIT), jnp.zeros((1, 8, 8, 3))
    form = of(model, image, (".*(attention|mlp)/.*",), ("head",), vit.TABLE, {})
    adapter = publishing.as_peft(*form[3:], transformers=version)
    assert sorted(adapter) == NAMES[str(version)]["vit"]
    if version == publishing.NEWEST:
        assert adapter.keys() == publishing.as_peft(*form[3:]).keys()


def dinov2s(**change):
    """The form of a DINOv2 with an adapter of all its linear layers."""
    model = ViT(dataclasses.replace(VIT, layer_scale=True, **change))
    image, whole = jnp.zeros((1, 8, 8, 3)), ("head", "block_0/mlp")
    targets = ".*/attention/.*", "block_1/mlp/.*"
    return of(model, image, targets, whole, dinov2.TABLE, {})[3:]


@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu"])
def test_a_dinov2s_modules_are_called_as_in_transformers(name):
    form = dinov2s(gated=name == "dinov2-swiglu")
    for version in (4, 5):
        adapter = publishing.as_peft(*form, transformers=version)
        assert sorted(adapter) == NAMES[str(version)][name]


def test_a_module_that_transformers_splits_has_equal_parts_of_its_outputs():
    form = dinov2s(gated=True)
    older, newer = (publishing.as_peft(*form, transformers=v) for v in (4, 5))
    equal, layer = np.testing.assert_array_equal, "dinov2.encoder.layer"
    for number, key, axis in ((0, "weight", 0), (0, "bias", 0), (1, "b", -1)):
        mlp = f"{layer}.{number}.mlp"
        parts = [newer[f"{mlp}.{name}"][key] for name in ("gate_proj", "up_proj")]
        equal(np.concatenate(parts, axis), older[f"{mlp}.weights_in"][key])
    for name in ("gate_proj", "up_proj"):
        part, both = newer[f"{layer}.1.mlp.{name}"], older[f"{layer}.1.mlp.weights_in"]
        equal(part["a"], both["a"])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_llamas_modules_are_called_alike_in_both(name):
    text = Text(jnp.zeros((1, 6), jnp.int32), jnp.array([[2, 5]]))
    model = Llama(LLAMAS[name])
    form = of(model, text, (".*_proj",), (), llama.TABLE, {})
    for version in (4, 5):
        expected = [x for x in NAMES[str(version)][name] if x != "lm_head"]
        found = publishing.as_peft(*form[3:], transformers=version)
        assert sorted(found) == expected


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    base, _, form = images()[2:]
    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        publishing.write_base(tmp_path / "base", base, form)
    assert list(tmp_path.iterdir()) == []


def test_a_base_is_written_once_and_read_by_its_config(tmp_path):
    base, _, form = images()[2:]
    folder = tmp_path / "base"
    for _ in range(2):
        publishing.write_base(folder, base, form)
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1 and len(list(folder.iterdir())) == 3
    refused = pytest.raises(ValueError, match="already exists and is not a copy")
    with refused:
        publishing.write_base(folder, base, form, dtype="float16")
    (folder / "mine").write_text("years of work")
    with refused:
        publishing.write_base(folder, base, form)
    (folder / "mine").unlink()
    (folder / "more.json").write_text("{ }")
    with refused:
        publishing.write_base(folder, base, form)


def tensors(folder):
    return {
        name: file.tensors.get_tensor(name)
        for name, file in weights.open_all(folder).items()
    }


@pytest.mark.parametrize("name", LLAMAS)
def test_a_described_llama_is_itself(name):
    config = LLAMAS[name]
    described = llama.config_of(llama.description_of(config))
    assert described.head == config.head
    same = {k: v for k, v in vars(described).items() if k != "head_width"}
    assert same == {k: v for k, v in vars(config).items() if k != "head_width"}


def test_a_described_vit_is_itself():
    assert vit.config_of(vit.description_of(VIT, side=8, colours=3, names="abc")) == VIT


def test_an_adapter_with_a_core_must_be_folded(tmp_path):
    adapter, form = languages()[3:]
    path = "layers/mlp/up_proj"
    adapter[path] |= {"m": jnp.stack([jnp.eye(2)] * 2)}
    with pytest.raises(ValueError, match="fold the model"):
        publishing.as_peft(adapter, form)
