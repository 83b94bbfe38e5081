"""The main job as its user has it: in processes of its own."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from potara_jax.experiments.digits import Digits

from potara_jax.data import digits
from potara_jax.jobs.run import main

ROOT = Path(__file__).parents[2]
TINY = {
    "seeds": 3,
    "heterogeneity": 0.5,
    "clients": 3,
    "federated-rounds": 3,
    "longer-rounds": 4,
    "local-rounds": 2,
    "local-steps": 2,
    "samples": 4,
    "grid-points": 3,
    "base-steps": 3,
    "depth": 1,
    "targets": "query",
    "rank": 2,
    "merges": "uniform grid fisher",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def words(cache: Path, out: Path) -> list[str]:
    tiny = [word for k, v in TINY.items() for word in (f"--{k}", *str(v).split())]
    return ["digits", *tiny, "--out", str(out), "--cache", str(cache)]


def start(cache: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "potara_jax.jobs.run",
        *words(cache, out),
        *options,
    ]
    keep_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | keep_all,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def without_seconds(value):
    """A JSON value with every measured time left out."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "seconds"}
        return {k: without_seconds(v) for k, v in kept.items()}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    status, out, error = finish(start(cache, folder))
    assert status == 0, error
    assert "potara core" in out
    return folder


def test_a_run_leaves_everything_that_it_promises(undisturbed):
    names = {p.name for p in undisturbed.iterdir() if not p.name.startswith(".")}
    files = {"config.json", "versions.json", "results.json", "clients.csv"}
    files |= {"metrics.jsonl", "report.html"}
    assert names == files | {"figures", "checkpoints", "cells", "adapters"}
    figures = {p.name for p in (undisturbed / "figures").iterdir()}
    expected = ("accuracy", "segment", "damping", "communication", "clients")
    assert figures == {f"{name}.png" for name in expected}


def test_the_ledger_counts_what_travelled(undisturbed):
    per_client = 2 * (64 + 64) * 4  # rank, inputs + outputs, float32
    by_name = {m["method"]: m for m in results(undisturbed)["methods"]}
    federated, merged = by_name["federated"], by_name["potara core"]
    assert federated["bytes_up"] == 3 * 3 * per_client
    assert federated["bytes_down"] == (3 + 1) * 3 * per_client
    assert merged["bytes_up"] == federated["bytes_up"]
    assert merged["bytes_down"] == federated["bytes_down"]
    assert by_name["local"]["bytes_up"] == by_name["local"]["bytes_down"] == 0
    assert by_name["federated + fine-tuning"]["bytes_up"] == federated["bytes_up"]
    assert merged["local_steps"] == (3 + 2) * 2
    assert merged["inference_parameters"] == 2 * per_client // 4
    longer = by_name["federated, 4 rounds"]
    assert longer["bytes_up"] == 4 * 3 * per_client and longer["local_steps"] == 4 * 2
    assert longer["loss"] != federated["loss"]


def test_oracles_are_marked_and_bound_the_constant_weights(undisturbed):
    rows = {m["method"]: m for m in results(undisturbed)["methods"]}
    marked = {name for name, row in rows.items() if row["oracle"]}
    assert marked == {"best constant weight", "best weight per client"}
    best = rows["best weight per client"]["mean"]
    assert best >= rows["best constant weight"]["mean"] >= rows["uniform"]["mean"]
    assert best >= rows["grid"]["mean"]


@pytest.mark.parametrize("lines", [2, 7])
def test_a_killed_run_ends_with_the_same_results(cache, undisturbed, tmp_path, lines):
    folder = tmp_path / "killed"
    process = start(cache, folder)
    _wait_for_lines(folder / "metrics.jsonl", lines, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "results.json").exists()
    status, _, error = finish(start(cache, folder))
    assert status == 0, error
    for name in ("config.json", "clients.csv", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    assert without_seconds(results(folder)) == without_seconds(results(undisturbed))


def _wait_for_lines(path: Path, number: int, process) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def test_a_finished_run_is_not_run_again(cache, undisturbed):
    before = (undisturbed / "results.json").stat().st_mtime_ns
    status, out, _ = finish(start(cache, undisturbed))
    assert status == 0
    assert "potara core" in out
    assert (undisturbed / "results.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_folder_is_refused(cache, undisturbed):
    status, out, error = finish(start(cache, undisturbed, "--rank", "3"))
    assert (status, out) == (2, "")
    assert error.count("\n") == 1
    assert "--rank 2, not 3" in error


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--rank", "0"], "--rank is 0"),
        (["--rank", "65"], "rank 65"),
        (["--clients", "0"], "--clients is 0"),
        (["--clients", "5000"], "5000 clients"),
        (["--cohort", "1.1"], "--cohort is 1.1"),
        (["--federated", "fedx"], "--federated is fedx: it must be one of apfl,"),
        (["--merges", "grid", "gird"], "--merges names gird; there are uniform;"),
        (["--targets", "qurey"], "'qurey'"),
        (["--targets", "("], "regular expression"),
        (["--out", "/dev/null/run"], "--out"),
        (["--heterogeneity", "very"], "--heterogeneity is very"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_two(tmp_path, capsys, options, named):
    assert main(["run", *words(tmp_path, tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("potara: ") and error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "bases").exists()


def test_a_federated_model_of_several_adapters_is_refused(cache, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", *words(cache, out), "--federated", "fedalt"]) == 2
    assert "--federated is fedalt: its model is not one ada" in capsys.readouterr().err


def test_a_client_whose_update_is_not_finite_is_named(tmp_path, capsys, monkeypatch):
    spoilt = digits.federation

    def with_a_broken_image(*args, **kwargs):
        made = spoilt(*args, **kwargs)
        first = made.train.index[1, 0]
        inputs = made.pool.inputs.at[first].set(jnp.nan)
        return made._replace(pool=made.pool._replace(inputs=inputs))

    monkeypatch.setattr(digits, "federation", with_a_broken_image)
    assert main(words(tmp_path, tmp_path / "run")) == 0
    left_out = results(tmp_path / "run")["diagnostics"][0]["left_out"]
    assert {entry["client"] for entry in left_out} == {1}
    assert "client 1 is left out" in capsys.readouterr().out
    assert "client 1" in (tmp_path / "run" / "report.html").read_text()
    for row in results(tmp_path / "run")["methods"]:
        assert all(0 <= value <= 1 for value in row["accuracy"])


def test_help_shows_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "digits", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Digits):
        assert "--" + field.name.replace("_", "-") in text
    assert "default: 0.005" in text


def test_an_unknown_experiment_or_option_is_status_two(capsys):
    assert main(["run", "digit"]) == 2
    assert "unknown experiment 'digit'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["run", "digits", "--rnak", "3"])
    assert ended.value.code == 2


@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"]])
def test_a_reader_that_leaves_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "potara_jax.cli.main", *words]
    ended = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")
