"""Against what PEFT computed: see `make_peft_fixtures`."""

import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from potara_jax import merging
from potara_jax.adapters import peft, peft_config
from potara_jax.adapters.lora import is_factors
from tests.helpers import assert_close, dense, factors

FIXTURES = Path(__file__).parent / "fixtures" / "peft"
READABLE = (
    "federated",
    "local",
    "bfloat16",
    "float16",
    "regex",
    "patterns",
    "rslora",
    "classifier",
    "classifier_local",
)
QUERY = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{QUERY}"


@pytest.fixture(scope="module")
def references():
    return load_file(FIXTURES / "references.safetensors")


def reference_deltas(references, name):
    """PEFT's dense deltas `[D, K]` by module."""
    start = f"{name}/"
    actual = {k: v.T for k, v in references.items() if k.startswith(start)}
    return {key.removeprefix(start): value for key, value in actual.items()}


def dense_deltas(adapter):
    return {path: dense(entry) for path, entry in adapter.items() if is_factors(entry)}


def read(name):
    return peft.read(FIXTURES / name)


@pytest.fixture
def copied(tmp_path):
    """A function that copies a fixture with its configuration or tensors changed."""

    def copy(name="federated", config=None, tensors=None):
        folder = tmp_path / name
        shutil.copytree(FIXTURES / name, folder)
        changed = json.loads((folder / peft.CONFIG).read_text()) | (config or {})
        (folder / peft.CONFIG).write_text(json.dumps(changed))
        stored = load_file(folder / peft.WEIGHTS) | (tensors or {})
        stored = {key: value for key, value in stored.items() if value is not None}
        save_file(stored, folder / peft.WEIGHTS)
        return folder

    return copy


# --- Reading -------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_deltas_are_those_of_peft(references, name):
    assert_close(
        dense_deltas(read(name).adapter),
        reference_deltas(references, name),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", READABLE)
def test_dtypes_are_told_and_values_are_float32(name):
    read_ = read(name)
    assert read_.dtype == (name if name in peft.DTYPES else "float32")
    arrays = [x for entry in read_.adapter.values() for x in entry.values()]
    assert {x.dtype for x in arrays} == {np.dtype("float32")}


def test_ranks_and_scales_follow_the_first_pattern_that_matches():
    patterned = read("patterns")
    ranks = {path: entry["a"].shape[1] for path, entry in patterned.adapter.items()}
    layer = "model.layers.{}.{}".format
    expected = {
        layer(0, "self_attn.q_proj"): (4, 8 / 4),
        layer(1, "self_attn.q_proj"): (2, 8 / 2),
        layer(0, "self_attn.v_proj"): (4, 6 / 4),
        layer(1, "self_attn.v_proj"): (4, 6 / 4),
        layer(0, "mlp.up_proj"): (3, 1 / 3),
        layer(1, "mlp.up_proj"): (3, 8 / 3),
    }
    assert {p: (ranks[p], patterned.scales[p]) for p in ranks} == expected


def test_the_scale_of_rslora_is_alpha_over_the_root_of_the_rank():
    assert set(read("rslora").scales.values()) == {8 / 2}


def test_modules_to_save_are_whole_modules():
    adapter = read("classifier").adapter
    stored = load_file(FIXTURES / "classifier" / peft.WEIGHTS)
    assert set(adapter["score"]) == {"weight"}
    expected = stored["base_model.model.score.weight"]
    np.testing.assert_array_equal(adapter["score"]["weight"], expected)


def test_a_whole_module_may_have_modules_inside():
    config = {"modules_to_save": ["classifier"]}
    actual = peft_config.whole_module(config, "head.classifier.dense.weight")
    assert actual == ("head.classifier", "dense.weight")
    assert peft_config.whole_module(config, "head.reclassifier.weight") is None


# --- Refusals ------------------------------------------------------------------------


def refused(folder):
    with pytest.raises(ValueError) as raised:
        peft.read(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_no_adapter_folder_is_refused(tmp_path):
    assert "nowhere is not a folder" in refused(tmp_path / "nowhere")
    assert "holds no adapter_config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"use_shiny": True, "shiny_config": {"a": 1}}, "sets shiny_config, use_shiny"),
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"r": 8}, f"'{QUERY}' has lora_A (4, 16)"),
        ({"r": 0}, f"the rank of '{QUERY}' is 0"),
        ({"lora_alpha": "8"}, f"lora_alpha of '{QUERY}' is '8'"),
        ({"rank_pattern": {"q_proj": 3}}, "do not fit rank 3"),
        ({"rank_pattern": {"(": 3}}, "not a regular expression"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    ],
)
def test_a_configuration_of_anything_else_is_refused(copied, config, named):
    folder = copied(config=config)
    message = refused(folder)
    assert named in message
    assert str(folder) in message


def test_unknown_settings_are_read_where_they_are_off_or_allowed(copied):
    off = {"use_shiny": False, "shiny_config": None, "shiny_names": [], "shiny": 0}
    folder = copied(config=off | {"init_lora_weights": "Gaussian"})
    assert peft.read(folder).adapter.keys() == read("federated").adapter.keys()
    on = copied("local", config={"use_shiny": True})
    assert "--allow-unknown-settings" in refused(on)
    allowed = peft.read(on, allow_unknown_settings=True)
    assert_close(allowed.adapter, read("local").adapter)


def test_dora_is_refused():
    assert "use_dora" in refused(FIXTURES / "dora")


def test_what_is_tied_to_a_module_trained_whole_is_read_with_it(copied, tmp_path):
    """As PEFT writes it with `ensure_weight_tying=True`."""
    table = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    config = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    names = "model.embed_tokens", "lm_head"
    tensors = {f"base_model.model.{name}.weight": table for name in names}
    folder = copied(config=config, tensors=tensors)
    source = peft.read(folder)
    for name in names:
        np.testing.assert_array_equal(source.adapter[name]["weight"], table)
    peft.write(tmp_path / "out", source.adapter, source.config)
    again = peft.read(tmp_path / "out")
    assert sorted(again.config["modules_to_save"]) == sorted(names)
    other = tensors | {"base_model.model.lm_head.weight": table + 1}
    assert "lm_head" in refused(copied("local", config=config, tensors=other))


def test_an_embedding_is_refused_by_what_would_remain_without_its_copy(copied):
    embedding = "base_model.model.model.embed_tokens"
    tensors = {
        f"{embedding}.base_layer.weight": MATRIX,
        f"{embedding}.lora_embedding_A": MATRIX,
    }
    assert "leave embeddings out of target_modules" in refused(copied(tensors=tensors))


def test_copies_of_modules_trained_whole_are_refused(copied):
    score = "base_model.model.score"
    tensors = {f"{score}.{n}.weight": MATRIX for n in ("modules_to_save", "original")}
    folder = copied("classifier", tensors=tensors)
    assert "save_embedding_layers=False" in refused(folder)


MATRIX = np.zeros((4, 16), np.float32)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({f"{KEY}.lora_magnitude_vector.weight": MATRIX}, "is DoRA's"),
        ({f"{KEY}.lora_B.bias": MATRIX}, "is a bias"),
        ({f"{KEY}.lora_embedding_A": MATRIX}, "an embedding"),
        ({f"{KEY}.lora_A.default.weight": MATRIX}, "is neither"),
        ({"base_model.model.lm_head.weight": MATRIX}, "save_embedding_layers"),
        ({f"{QUERY}.lora_A.weight": MATRIX}, "is neither"),
        ({f"{KEY}.lora_B.weight": None}, "has lora_A but no lora_B"),
        ({f"{KEY}.lora_A.weight": None}, "has lora_B but no lora_A"),
        ({f"{KEY}.lora_A.weight": MATRIX[:2]}, "lora_A (2, 16) and lora_B (16, 4)"),
        ({f"{KEY}.lora_A.weight": MATRIX[:, :, None, None]}, "only linear layers"),
        ({f"{KEY}.lora_A.weight": MATRIX * np.nan}, "not finite"),
        ({f"{KEY}.lora_A.weight": MATRIX[:0]}, "empty factors (0, 16)"),
        ({f"{KEY}.lora_A.weight": MATRIX[0, :0]}, "DeepSpeed ZeRO-3"),
        ({f"{KEY}.lora_A.weight": MATRIX.astype(np.int8)}, "stored as I8"),
    ],
)
def test_tensors_of_anything_else_are_refused(copied, tensors, named):
    folder = copied(tensors=tensors)
    message = refused(folder)
    assert named in message
    assert str(folder / peft.WEIGHTS) in message
    assert KEY.removeprefix("base_model.model.") in message or "lm_head" in message


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_that_is_cut_short_is_refused(copied, kept):
    path = copied() / peft.WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is cut short or damaged" in refused(path.parent)


def test_an_older_file_is_refused_by_its_name(copied):
    folder = copied()
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
    assert "safe_serialization=True" in refused(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_configuration_that_is_no_json_object_is_refused(copied, content):
    path = copied() / peft.CONFIG
    path.write_bytes(content)
    assert str(path) in refused(path.parent)


# --- Several adapters ----------------------------------------------------------------


def test_adapters_of_one_base_fit_together():
    federated, local = read("federated"), read("local")
    adapters = peft.align([federated, local])
    assert list(adapters[0]) == list(adapters[1]) == sorted(federated.adapter)
    assert_close(adapters[1], local.adapter)


def test_adapters_of_another_base_are_refused(copied):
    other = peft.read(copied(config={"base_model_name_or_path": "other"}))
    with pytest.raises(ValueError, match=r"'tiny/llama', but .* 'other'"):
        peft.align([read("federated"), other])


def test_one_base_may_be_spelled_in_two_ways(copied):
    slash = {"base_model_name_or_path": "tiny/llama/", "revision": "main"}
    assert peft.align([read("federated"), peft.read(copied(config=slash))])
    other = peft.read(copied("local", config={"revision": "v2"}))
    with pytest.raises(ValueError, match=r"revision 'main', but .* revision 'v2'"):
        peft.align([read("federated"), other])


def test_layers_under_other_names_are_refused_also_as_zero():
    federated = read("federated")
    for names in (("model", "base.model"), ("model", "model.model")):
        adapter = {p.replace(*names, 1): e for p, e in federated.adapter.items()}
        for missing in ("refuse", "zero"):
            with pytest.raises(ValueError, match="one model under two names"):
                peft.align(
                    [federated, federated._replace(adapter=adapter)], missing=missing
                )


def test_a_vits_layers_of_transformers_4_and_5_are_refused():
    entry = factors(0)
    pair = [
        read("federated")._replace(adapter={path: entry})
        for path in (
            "vit.encoder.layer.0.attention.attention.query",
            "vit.layers.0.attention.q_proj",
        )
    ]
    with pytest.raises(ValueError, match="by transformers 4 and 5"):
        peft.align(pair, missing="zero")


def test_other_modules_of_the_same_layers_are_zero():
    entry, layer = factors(0), "model.layers.0"
    pair = [
        read("federated")._replace(adapter={f"{layer}.{name}": entry})
        for name in ("self_attn.q_proj", "mlp.up_proj")
    ]
    assert len(peft.align(pair, missing="zero")[0]) == 2
    with pytest.raises(ValueError, match="is in"):
        peft.align(pair)


def test_adapters_of_another_task_are_refused(copied):
    classifier = read("classifier")
    other = peft.read(copied("classifier", config={"task_type": "TOKEN_CLS"}))
    with pytest.raises(ValueError, match=r"'SEQ_CLS', but .* 'TOKEN_CLS'"):
        peft.align([classifier, other])


def test_a_task_that_is_not_given_fits_any(copied):
    other = peft.read(copied(config={"task_type": "CAUSAL_LM"}))
    both = [read("federated"), other]
    assert peft.align(both)
    config = peft_config.merged_config([source.config for source in both])
    assert config["task_type"] == "CAUSAL_LM"


def test_another_base_may_be_allowed(copied):
    other = peft.read(copied(config={"base_model_name_or_path": "copy"}))
    assert peft.align([read("federated"), other], allow_different_base=True)


def test_a_module_that_one_adapter_lacks_is_refused_or_zero():
    both = [read("federated"), read("regex")]
    with pytest.raises(ValueError, match=r"down_proj' is in .*regex but not in"):
        peft.align(both)
    first, second = peft.align(both, missing="zero")
    assert set(first) == set(second) == set(both[0].adapter) | set(both[1].adapter)
    only_regex = "model.layers.0.mlp.down_proj"
    assert not first[only_regex]["b"].any()
    assert first[only_regex]["a"].shape == second[only_regex]["a"].shape
    assert_close(second[only_regex], both[1].adapter[only_regex])


def test_a_whole_module_must_be_in_all():
    classifier = read("classifier")
    bare = {p: e for p, e in classifier.adapter.items() if p != "score"}
    both = [classifier, classifier._replace(adapter=bare)]
    with pytest.raises(ValueError, match="'score' is in"):
        peft.align(both, missing="zero")


def test_modules_of_other_sizes_are_refused():
    federated = read("federated")
    wider = federated.adapter | {QUERY: factors(0, inputs=20, outputs=16)}
    with pytest.raises(ValueError, match=f"'{QUERY}' is 16 -> 16 in .* 20 -> 16"):
        peft.align([federated, federated._replace(adapter=wider)])


def test_the_linear_merge_is_that_of_peft_cat(references):
    adapters = peft.align([read("federated"), read("local")])
    merged = merging.merge(adapters, [0.3, 0.7], space="delta")
    expected = reference_deltas(references, "merged/cat")
    assert_close(dense_deltas(merged), expected, atol=1e-6)


def test_the_truncated_merge_is_that_of_peft_svd(references):
    adapters = peft.align([read("federated"), read("local")])
    merged = merging.merge(adapters, [0.3, 0.7], space="delta", rank=4)
    expected = reference_deltas(references, "merged/svd")
    assert_close(dense_deltas(merged), expected, atol=1e-5)


def test_equal_adapters_merge_to_themselves_where_peft_linear_doubles(references):
    federated = read("federated").adapter
    merged = merging.merge([federated, federated], [0.5, 0.5], space="delta")
    expected = reference_deltas(references, "federated")
    assert_close(dense_deltas(merged), expected, atol=1e-6)
    doubled = reference_deltas(references, "merged/linear_equal")
    assert_close(doubled, {p: 2 * x for p, x in expected.items()}, atol=1e-6)


# --- Writing -------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_what_is_written_is_read_again(tmp_path, name):
    source = read(name)
    peft.write(tmp_path / "out", source.adapter, source.config, dtype=source.dtype)
    again = peft.read(tmp_path / "out")
    tolerance = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-9}[source.dtype]
    assert_close(
        dense_deltas(again.adapter), dense_deltas(source.adapter), atol=tolerance
    )
    assert set(again.adapter) == set(source.adapter)
    assert again.dtype == source.dtype
    assert set(again.scales.values()) == {1.0}
    for field in ("base_model_name_or_path", "task_type", "modules_to_save"):
        assert again.config[field] == source.config[field]


def test_one_rank_for_all_modules_padded_with_zeros(tmp_path):
    source = read("patterns")
    peft.write(tmp_path / "out", source.adapter, source.config)
    again = peft.read(tmp_path / "out")
    assert {entry["a"].shape[1] for entry in again.adapter.values()} == {4}
    assert again.config["r"] == again.config["lora_alpha"] == 4
    assert again.config["rank_pattern"] == again.config["alpha_pattern"] == {}
    padded = again.adapter["model.layers.1.self_attn.q_proj"]
    assert not padded["a"][:, 2:].any() and not padded["b"][2:].any()


def test_the_file_says_that_it_is_for_torch(tmp_path):
    peft.write(tmp_path / "out", read("local").adapter)
    with safetensors.safe_open(tmp_path / "out" / peft.WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_targets_stay_names_where_they_were_names(tmp_path):
    source = read("federated")
    peft.write(tmp_path / "out", source.adapter, source.config)
    again = peft.read(tmp_path / "out")
    assert set(again.config["target_modules"]) == {"q_proj", "v_proj"}


def test_targets_of_a_regular_expression_become_paths(tmp_path):
    source = read("regex")
    peft.write(tmp_path / "out", source.adapter, source.config)
    again = peft.read(tmp_path / "out")
    assert again.config["target_modules"] == sorted(source.adapter)


def test_merged_targets_are_all_names_or_none():
    names = {"target_modules": ["v", "q"], "base_model_name_or_path": "base"}
    both = peft_config.merged_config([names, {"target_modules": ["q", "up"]}])
    assert both["target_modules"] == ["q", "up", "v"]
    assert both["base_model_name_or_path"] == "base"
    for other in ({"target_modules": ".*q"}, {**names, "layers_to_transform": [0]}):
        assert peft_config.merged_config([names, other])["target_modules"] is None


def test_a_folder_that_is_there_is_replaced_only_if_asked(tmp_path):
    out = tmp_path / "out"
    peft.write(out, read("federated").adapter)
    with pytest.raises(ValueError, match="already exists"):
        peft.write(out, read("local").adapter)
    assert_close(peft.read(out).adapter, read("federated").adapter)
    peft.write(out, read("local").adapter, overwrite=True)
    assert_close(peft.read(out).adapter, read("local").adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_adapter_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no PEFT adapter"):
        peft.write(tmp_path, read("local").adapter, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def full(path, text, encoding):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        peft.write(tmp_path / "out", read("local").adapter)
    assert list(tmp_path.iterdir()) == []


def test_the_old_folder_comes_back_where_the_new_one_cannot_come(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", os.rename
    peft.write(out, read("federated").adapter)

    def failing(source, target):
        if source.name == "new":
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no"):
        peft.write(out, read("local").adapter, overwrite=True)
    assert_close(peft.read(out).adapter, read("federated").adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1.0, 1e5])
def test_float16_holds_small_and_large_deltas(tmp_path, size):
    """Were the scale in one factor alone, it would underflow or overflow."""
    entry = factors(0, inputs=8, outputs=8, rank=4)
    adapter = {"q": entry | {"b": size * entry["b"]}}
    peft.write(tmp_path / "out", adapter, dtype="float16")
    again = peft.read(tmp_path / "out").adapter["q"]
    assert_close(dense(again), size * dense(entry), atol=2**-9)


def test_what_float16_would_change_by_more_than_rounding_is_refused(tmp_path):
    of = lambda a, b: {"q": {"a": jnp.full((2, 1), a), "b": jnp.full((1, 2), b)}}
    head = lambda x: of(1.0, 1.0) | {"head": {"kernel": jnp.full((2, 3), x)}}
    for adapter, named in [
        (of(1e5, 1e5), "'q' has values that float16 cannot hold"),
        (of(1e-6, 1e-6), "'q' has values so small that float16"),
        (head(1e-6), "'head' has values so small that float16"),
        (head(1e5), "'head' has values that float16 cannot hold"),
    ]:
        with pytest.raises(ValueError, match=named):
            peft.write(tmp_path / "out", adapter, dtype="float16")
        peft.write(tmp_path / "wide", adapter, dtype="bfloat16", overwrite=True)
    small = head(1e-42)
    with pytest.raises(ValueError, match="'head' has values so small that bfloat16"):
        peft.write(tmp_path / "out", small, dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def test_stacked_factors_and_cores_cannot_be_written(tmp_path):
    for entry in (factors(0, lead=(2,)), factors(0) | {"m": jnp.eye(2)}):
        with pytest.raises(ValueError, match="plain factors of one client"):
            peft.write(tmp_path / "out", {"q": entry})
