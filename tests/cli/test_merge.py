"""`potara merge`: adapters that PEFT wrote, merged, as its user has it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from potara_jax.adapters import peft
from potara_jax.adapters.lora import is_factors
from potara_jax.cli.main import main
from potara_jax.cli.merge import Merge, command
from potara_jax.merging import SPACES, registry
from tests.helpers import assert_close, dense

FIXTURES = Path(__file__).parents[1] / "adapters" / "fixtures" / "peft"
FEDERATED, LOCAL = FIXTURES / "federated", FIXTURES / "local"
PAIR = ["--federated", str(FEDERATED), "--local", str(LOCAL)]
USABLE = {k: e for k, e in registry.merges().items() if e.needs == "nothing"}


def merge(out, *words, pair=PAIR):
    return main(["merge", *pair, "--out", str(out), *map(str, words)])


def deltas(folder):
    adapter = peft.read(folder).adapter
    return {path: dense(entry) for path, entry in adapter.items() if is_factors(entry)}


def mixed(weights, folders):
    each = [deltas(folder) for folder in folders]
    return {
        path: sum(w * x[path] for w, x in zip(weights, each, strict=True))
        for path in each[0]
    }


# --- Merging -------------------------------------------------------------------------


def test_a_merge_is_the_weighted_sum_of_the_deltas(tmp_path, capsys):
    assert merge(tmp_path / "out", "--weight", 0.3, "--space", "delta") == 0
    expected = mixed([0.3, 0.7], [FEDERATED, LOCAL])
    assert_close(deltas(tmp_path / "out"), expected, atol=1e-6)
    said = capsys.readouterr().out
    assert "weights 0.3, 0.7 by linear in delta space" in said
    assert "rank 8, nothing is cut off" in said


def test_a_merge_is_that_of_peft_cat(tmp_path):
    assert merge(tmp_path / "out", "--weight", 0.3) == 0
    references = load_file(FIXTURES / "references.safetensors")
    for path, delta in deltas(tmp_path / "out").items():
        expected = references[f"merged/cat/{path}"].T
        np.testing.assert_allclose(delta, expected, atol=1e-6)


def test_the_weight_is_one_half_if_not_given(tmp_path):
    assert merge(tmp_path / "out") == 0
    expected = mixed([0.5, 0.5], [FEDERATED, LOCAL])
    assert_close(deltas(tmp_path / "out"), expected, atol=1e-6)


def test_a_rank_truncates_and_says_what_it_keeps(tmp_path, capsys):
    assert merge(tmp_path / "out", "--rank", 4) == 0
    for path, delta in deltas(tmp_path / "out").items():
        u, sigma, v = np.linalg.svd(mixed([0.5, 0.5], [FEDERATED, LOCAL])[path])
        nearest = (u[:, :4] * sigma[:4]) @ v[:4]
        assert_close(delta, nearest)
    assert peft.read(tmp_path / "out").config["r"] == 4
    assert "rank 4 of 8 keeps" in capsys.readouterr().out


def test_a_rank_above_the_exact_one_cuts_nothing(tmp_path):
    assert merge(tmp_path / "out", "--rank", 32) == 0
    assert peft.read(tmp_path / "out").config["r"] == 8


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "ties", "--density", "0.3"],
        ["--method", "ties", "--space", "knots", "--rank", "4"],
        ["--method", "dare", "--density", "0.5", "--draws", "4"],
        ["--method", "wudi", "--ridge", "0.1"],
        ["--method", "task_arithmetic", "--scale", "0.5"],
    ],
)
def test_every_option_reaches_its_method(tmp_path, words):
    assert merge(tmp_path / "out", *words) == 0
    linear = mixed([0.5, 0.5], [FEDERATED, LOCAL])
    assert set(deltas(tmp_path / "out")) == set(linear)


def test_the_density_changes_the_result(tmp_path):
    for density in (0.3, 0.9):
        out = tmp_path / str(density)
        assert merge(out, "--method", "ties", "--density", density) == 0
    first, second = deltas(tmp_path / "0.3"), deltas(tmp_path / "0.9")
    assert any(np.abs(first[path] - second[path]).max() > 0.01 for path in first)


def test_the_seed_decides_what_is_random(tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert merge(tmp_path / name, "--method", "dare", "--seed", seed) == 0
    stored = [load_file(tmp_path / n / peft.WEIGHTS) for n in ("one", "again", "two")]
    key = next(iter(stored[0]))
    np.testing.assert_array_equal(stored[0][key], stored[1][key])
    assert (stored[0][key] != stored[2][key]).any()


def test_any_number_of_adapters(tmp_path):
    folders = [FEDERATED, LOCAL, FIXTURES / "rslora"]
    words = ["--adapters", *folders, "--weights", 0.2, 0.3, -0.5]
    assert merge(tmp_path / "out", *words, pair=[]) == 0
    expected = mixed([0.2, 0.3, -0.5], folders)
    assert_close(deltas(tmp_path / "out"), expected, atol=1e-6)


def test_whole_modules_are_averaged(tmp_path):
    folders = [FIXTURES / "classifier", FIXTURES / "classifier_local"]
    pair = ["--federated", str(folders[0]), "--local", str(folders[1])]
    assert merge(tmp_path / "out", "--weight", 0.25, pair=pair) == 0
    first, second, out = (
        peft.read(folder).adapter["score"]["weight"]
        for folder in (*folders, tmp_path / "out")
    )
    np.testing.assert_allclose(out, 0.25 * first + 0.75 * second, rtol=1e-6)
    assert peft.read(tmp_path / "out").config["task_type"] == "SEQ_CLS"


def test_the_dtype_is_the_widest_by_default(tmp_path):
    halves = ["--adapters", FIXTURES / "bfloat16", FIXTURES / "bfloat16"]
    mixture = ["--adapters", FIXTURES / "bfloat16", FIXTURES / "float16"]
    assert merge(tmp_path / "halves", *halves, pair=[]) == 0
    assert merge(tmp_path / "mixture", *mixture, pair=[]) == 0
    assert merge(tmp_path / "narrow", "--dtype", "bfloat16") == 0
    dtypes = [peft.read(tmp_path / n).dtype for n in ("halves", "mixture", "narrow")]
    assert dtypes == ["bfloat16", "float32", "bfloat16"]


def test_modules_that_only_one_adapts_count_as_zero(tmp_path):
    pair = ["--federated", str(FEDERATED), "--local", str(FIXTURES / "regex")]
    assert merge(tmp_path / "out", "--missing", "zero", pair=pair) == 0
    only, both = deltas(FIXTURES / "regex"), deltas(tmp_path / "out")
    path = "model.layers.0.mlp.down_proj"
    assert_close(both[path], only[path] / 2, atol=1e-6)
    assert set(both) == set(only) | set(deltas(FEDERATED))


def test_a_single_adapter_is_rewritten_with_one_rank(tmp_path):
    words = ["--adapters", FIXTURES / "patterns", "--weights", 1]
    assert merge(tmp_path / "out", *words, pair=[]) == 0
    assert_close(deltas(tmp_path / "out"), deltas(FIXTURES / "patterns"), atol=1e-6)
    assert peft.read(tmp_path / "out").config["rank_pattern"] == {}


# --- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--weight", "1.5"], "--weight is 1.5"),
        (["--weight", "nan"], "--weight is nan"),
        (["--method", "tiess"], "--method is 'tiess'"),
        (["--method", "regmean"], "--method is 'regmean'"),
        (["--density", "0.3"], "--density is not an option of 'linear'"),
        (["--method", "ties", "--draws", "2"], "--draws is not an option of 'ties'"),
        (["--method", "ties", "--density", "2"], "density is 2"),
        (["--method", "ties", "--space", "delta"], "does not merge in 'delta'"),
        (["--space", "sphere"], "does not merge in 'sphere'"),
        (["--rank", "0"], "--rank is 0"),
        (["--weights", "1", "2"], "--weights is for --adapters"),
        (["--adapters", str(LOCAL)], "--adapters replaces"),
        (["--federated", "nowhere"], "nowhere is not a folder"),
        (["--federated", str(FIXTURES / "dora")], "use_dora"),
        (["--federated", str(FIXTURES / "regex")], "is in"),
        (["--out", str(FEDERATED)], "already exists"),
        (["--out", "/dev/null/out"], "/dev/null"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(tmp_path, capsys, words, named):
    assert merge(tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("potara: ") and error.count("\n") == 1
    assert named in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "give --federated and --local"),
        (["--federated", str(LOCAL)], "give --federated and --local"),
        (["--adapters", str(LOCAL), "--weights", "1", "2"], "1 numbers"),
        (["--adapters", str(LOCAL), "--weights", "inf"], "--weights is inf"),
        (
            ["--adapters", *[str(LOCAL)] * 3, "--method", "slerp"],
            "merges two adapters, not 3",
        ),
    ],
)
def test_a_wrong_choice_of_adapters_is_refused(tmp_path, capsys, words, named):
    assert merge(tmp_path / "out", *words, pair=[]) == 2
    assert named in capsys.readouterr().err


def test_weights_of_whole_modules_must_add_up_to_one(tmp_path, capsys):
    words = ["--adapters", FIXTURES / "classifier", FIXTURES / "classifier_local"]
    assert merge(tmp_path / "out", *words, "--weights", 1, 1, pair=[]) == 2
    assert "'score' is trained whole" in capsys.readouterr().err


def test_a_damaged_adapter_is_named(tmp_path, capsys):
    shutil.copytree(FEDERATED, tmp_path / "cut")
    file = tmp_path / "cut" / peft.WEIGHTS
    file.write_bytes(file.read_bytes()[:-5])
    assert merge(tmp_path / "out", "--federated", tmp_path / "cut") == 2
    assert f"{file} is cut short or damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_is_replaced_only_with_overwrite(tmp_path, capsys):
    assert merge(tmp_path / "out", "--weight", 1) == 0
    assert merge(tmp_path / "out", "--weight", 0) == 2
    assert "already exists" in capsys.readouterr().err
    assert_close(deltas(tmp_path / "out"), deltas(FEDERATED), atol=1e-6)
    assert merge(tmp_path / "out", "--weight", 0, "--overwrite") == 0
    assert_close(deltas(tmp_path / "out"), deltas(LOCAL), atol=1e-6)


def test_a_folder_that_holds_more_than_an_adapter_is_not_overwritten(tmp_path, capsys):
    parent = tmp_path / "parent"
    shutil.copytree(FEDERATED, parent)
    shutil.copytree(LOCAL, parent / "checkpoint-1")
    words = ["--adapters", str(parent), str(parent / "checkpoint-1")]
    assert merge(parent, "--overwrite", pair=words) == 2
    assert "holds more than a PEFT adapter (checkpoint-1)" in capsys.readouterr().err
    assert (parent / "checkpoint-1" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "slerp", "--weights", 1, -1], "'slerp' divides by the sum"),
        (["--method", "wudi", "--weights", 1, -1], "'wudi' needs weights of 0"),
        (["--method", "ties", "--scale", "nan"], "scale is nan"),
        (["--method", "wudi", "--ridge", "inf"], "ridge is inf"),
        (["--seed", 2**70], "--seed is"),
    ],
)
def test_invalid_options_are_refused_in_one_line(tmp_path, capsys, words, message):
    pair = ["--adapters", str(FEDERATED), str(LOCAL)]
    assert merge(tmp_path / "out", *words, pair=pair) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", [1, "q"]),
        ("modules_to_save", [["a"]]),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e39),
        ("r", True),
    ],
)
def test_configurations_of_wrong_types_name_the_field(tmp_path, capsys, field, value):
    folder = tmp_path / "changed"
    shutil.copytree(FEDERATED, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    words = ["--adapters", str(folder), str(LOCAL)]
    assert merge(tmp_path / "out", pair=words) == 2
    said = capsys.readouterr().err
    named = {"r": "rank"}.get(field, field)
    assert named in said and said.count("\n") == 1


def test_adapters_of_two_revisions_of_a_base_are_refused(tmp_path, capsys):
    folder = tmp_path / "changed"
    shutil.copytree(FEDERATED, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "v2"}))
    assert merge(tmp_path / "out", pair=["--adapters", str(folder), str(LOCAL)]) == 2
    assert "at revision 'v2'" in capsys.readouterr().err


# --- Help ----------------------------------------------------------------------------


def test_help_names_every_option_method_and_space(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["merge", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Merge):
        assert "--" + field.name.replace("_", "-") in text
    for name, entry in registry.merges().items():
        assert (f"  {name}: " in text) == (entry.needs == "nothing")
    for name in SPACES:
        assert f"  {name}: " in text


def test_every_option_of_every_method_can_be_given(capsys):
    options = {name for entry in USABLE.values() for name in entry.options}
    kind, _ = command(["merge"])
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    text = capsys.readouterr().out
    assert options and all(f"--{name}" in text for name in options)
    assert {field.name for field in dataclasses.fields(kind)} == {"merge", "options"}
