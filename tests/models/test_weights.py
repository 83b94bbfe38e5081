import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from potara_jax.models import llama, vit, weights
from potara_jax.models.llama import Llama
from tests.models.test_parity import FIXTURES, language

SHARDS = "model-0000*.safetensors"


def shapes_of(name):
    config = llama.config_of(weights.read_config(FIXTURES / name))
    text = llama.Text(*(jnp.zeros((1, 4), jnp.int32),) * 2)
    return jax.eval_shape(Llama(config).init, jax.random.key(0), text)["params"]


def test_written_weights_are_read_back_under_their_names(tmp_path):
    for name in ("llama", "qwen2", "qwen3", "llama-untied"):
        _, params, _ = language(name)
        config = weights.read_config(FIXTURES / name)
        weights.save(tmp_path / name, params, llama.TABLE, config)
        again = weights.load(tmp_path / name, llama.TABLE, shapes_of(name))
        jax.tree.map(np.testing.assert_array_equal, params, again)
        stored = {}
        for path in FIXTURES.joinpath(name).glob("*.safetensors"):
            stored |= load_file(path)
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == stored.keys()
        jax.tree.map(np.testing.assert_array_equal, written, stored)


def test_parameters_are_read_in_another_dtype_and_placed():
    placed = []

    def place(path, x):
        placed.append(path)
        return jnp.asarray(x)

    params = weights.load(
        FIXTURES / "llama",
        llama.TABLE,
        shapes_of("llama"),
        dtype="bfloat16",
        place=place,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert "layers/mlp/up_proj/kernel" in placed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_files_of_two_bytes_a_number_are_read_and_compute_what_float32_does(
    dtype, tmp_path
):
    model, params, text = language("llama")
    weights.save(tmp_path, params, llama.TABLE, {}, dtype=dtype)
    half = weights.load(tmp_path, llama.TABLE, shapes_of("llama"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {dtype}
    rounded = jax.tree.map(lambda x: x.astype(dtype), params)
    jax.tree.map(np.testing.assert_array_equal, half, rounded)
    exact = weights.load(tmp_path, llama.TABLE, shapes_of("llama"), dtype="float32")
    logits = jax.jit(lambda params: model.apply({"params": params}, text))
    np.testing.assert_allclose(logits(half), logits(exact), atol=1e-6)


def test_numbers_that_a_dtype_cannot_hold_are_not_written(tmp_path):
    _, params, _ = language("llama")
    large = jax.tree.map(lambda x: x.at[...].set(7e4), params)
    with pytest.raises(ValueError, match="up to 70000, which do not fit float16"):
        weights.save(tmp_path, large, llama.TABLE, {}, dtype="float16")
    assert not list(tmp_path.glob("*.safetensors"))
    weights.save(tmp_path, large, llama.TABLE, {}, dtype="bfloat16")


def copied(tmp_path, name="qwen2"):
    shutil.copytree(FIXTURES / name, tmp_path / name)
    return tmp_path / name


def test_all_tensors_that_do_not_fit_are_listed_at_once(tmp_path):
    folder = copied(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.extra.weight"] = np.zeros(3, np.float32)
    tensors["model.embed_tokens.weight"] = np.zeros((61, 16), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="another model") as error:
        weights.load(folder, llama.TABLE, shapes_of("qwen2"))
    message = str(error.value)
    assert "2 missing: " in message and "model.layers.1.mlp.up_proj.weight" in message
    assert "model.embed_tokens.weight (61, 16) instead of (61, 32)" in message
    assert "1 unknown: model.extra.weight" in message


def test_tensors_that_are_not_finite_numbers_are_named(tmp_path):
    folder, name = copied(tmp_path), "model.norm.weight"
    tensors = load_file(folder / "model.safetensors")
    codes, none = tensors[name].astype(np.int8), tensors[name] * np.nan
    for bad, message in ((codes, "of I8, which"), (none, "is not finite")):
        save_file(tensors | {name: bad}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=f"{name} {message}"):
            weights.load(folder, llama.TABLE, shapes_of("qwen2"))


def test_a_damaged_index_is_named(tmp_path):
    folder = copied(tmp_path, "llama")
    for value in (1, None):
        (folder / weights.INDEX).write_text(json.dumps({"weight_map": {"a": value}}))
        with pytest.raises(ValueError, match=weights.INDEX):
            weights.load(folder, llama.TABLE, shapes_of("llama"))


WRONG = ({"hidden_size": 0}, {"num_hidden_layers": "2"}, {"num_key_value_heads": 3})
WRONG += ({"rms_norm_eps": None}, {"rope_theta": -1.0}, {"rope_theta": 0})
WRONG += ({"max_position_embeddings": 0},)


@pytest.mark.parametrize("wrong", WRONG)
def test_invalid_sizes_are_named_with_their_file(wrong, tmp_path):
    config = weights.read_config(FIXTURES / "llama") | wrong
    refused = pytest.raises(ValueError, match=r"config\.json: ")
    with refused as error, weights.errors_naming(tmp_path / "config.json"):
        llama.config_of(config)
    message = str(error.value)
    assert next(iter(wrong)) in message or "do not share 3" in message


def test_a_missing_shard_a_damaged_file_and_no_folder_are_named(tmp_path):
    folder = copied(tmp_path, "llama")
    shard = sorted(folder.glob(SHARDS))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match=f"holds no {shard.name}"):
        weights.load(folder, llama.TABLE, shapes_of("llama"))
    shard.write_bytes(content[:100])
    with pytest.raises(ValueError, match=f"{shard.name} is cut short"):
        weights.load(folder, llama.TABLE, shapes_of("llama"))
    with pytest.raises(ValueError, match="is not a folder"):
        weights.load(tmp_path / "none", llama.TABLE, shapes_of("llama"))
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        weights.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        weights.read_config(tmp_path)


REFUSED = [
    ({"model_type": "mistral"}, "model_type is 'mistral': it must be one of llama"),
    ({"hidden_act": "gelu"}, "not a SwiGLU"),
    ({"use_sliding_window": True}, "only full attention"),
    ({"attention_bias": True}, "attention_bias is true"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_other_models_are_refused(change, reason):
    description = json.loads(Path(FIXTURES / "llama" / "config.json").read_text())
    with pytest.raises(ValueError, match=reason):
        llama.config_of(description | change)


def test_the_older_form_of_a_configuration_is_read():
    description = json.loads(Path(FIXTURES / "llama" / "config.json").read_text())
    rope = description.pop("rope_parameters")
    older = description | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    new = json.loads(Path(FIXTURES / "llama" / "config.json").read_text())
    assert llama.config_of(older) == llama.config_of(new)


def test_other_image_models_are_refused():
    with pytest.raises(ValueError, match="model_type is 'swin'"):
        vit.config_of({"model_type": "swin"})
    with pytest.raises(ValueError, match="hidden_act is 'relu6'"):
        vit.config_of({"model_type": "vit", "hidden_act": "relu6"})


def test_a_checkpoint_that_cannot_be_had_says_what_to_do(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route to the hub, " + "again and again " * 40)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"again\.\.\.\).*--checkpoint") as error:
        weights.folder_of("owner/model")
    assert "hf download owner/model" in str(error.value)
