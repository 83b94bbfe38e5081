"""The command line as a whole: help, mistakes, and settings as options."""

import os
import subprocess
import sys

import pytest

from potara_jax.cli import catalogue
from potara_jax.cli.main import _COMMANDS, main
from potara_jax.experiments import digits
from potara_jax.jobs import JOBS
from tests.jobs.tiny import DIGITS, options, potara


def shown(capsys, *words):
    """What `--help` and the like print, and the exit status."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    printed = capsys.readouterr()
    return ended.value.code, printed.out + printed.err


# --- Help ----------------------------------------------------------------------------


def test_the_usage_names_every_command_with_what_it_does(capsys):
    status, text = shown(capsys, "--help")
    assert status == 0
    assert all(name in text for name in _COMMANDS)
    assert set(JOBS) <= set(_COMMANDS)


@pytest.mark.parametrize("job", JOBS)
def test_the_help_of_a_job_names_every_experiment(job, capsys):
    status, text = shown(capsys, job, "--help")
    assert status == 0
    assert all(name in text for name in catalogue.names())


def test_help_shows_every_setting_with_its_default(capsys):
    status, text = shown(capsys, "run", "digits", "--help")
    assert status == 0
    names = [name.removeprefix("source.") for name in digits.EXPERIMENT.settings()]
    for name in (*names, "out", "cache", "rerun", "profile", "load"):
        option = "--" + name.replace("_", "-")
        assert f"{option} " in text or f"{option}, " in text
    assert "default: 0.005" in text


def test_a_job_has_its_settings_and_starts_from_its_presets(capsys):
    _, text = shown(capsys, "simulate", "digits", "--help")
    assert "--scored INT" in text and "default: 10000" in text
    assert "default: runs/simulate-digits" in " ".join(text.split())
    _, text = shown(capsys, "compare", "digits", "--help")
    assert "--algorithms " in text and "--scored" not in text


# --- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["merg"], ["digits"]])
def test_an_unknown_command_is_status_two(capsys, words):
    status, text = shown(capsys, *words)
    assert status == 2
    assert all(name in text for name in _COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "digit"],
        ["run", "digits", "--lora.rnak", "3"],
        ["run", "digits", "--rank", "3"],
        ["run", "digits", "--lora.rank", "many"],
        ["run", "digits", "--scored", "3"],
    ],
)
def test_an_unknown_experiment_option_or_value_is_status_two(capsys, words):
    status, text = shown(capsys, *words)
    assert status == 2
    assert words[-1] in text or words[-2] in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lora.rank", "0"], "lora.rank is 0: it must be"),
        (["--lora.rank", "65"], "rank 65"),
        (["--lora.targets", "qurey"], "'qurey'"),
        (["--lora.targets", "("], "regular expression"),
        (["--cells.clients", "0"], "cells.clients is 0"),
        (["--cells.clients", "5000"], "5000 clients"),
        (["--cells.heterogeneity", "very"], "cells.heterogeneity is very"),
        (["--participation.cohort", "1.1"], "participation.cohort is 1.1"),
        (
            ["--federated.algorithm", "fedx"],
            "federated.algorithm is fedx: it must be one of apfl,",
        ),
        (
            ["--merging.methods", "grid", "gird"],
            "merging.methods is gird: it must be one of uniform,",
        ),
        (["--out", "/dev/null/run"], "/dev/null"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_two(tmp_path, capsys, words, named):
    places = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    assert main(["run", "digits", *options(DIGITS), *places, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("potara: ") and error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "bases").exists() and not (tmp_path / "run").exists()


def test_a_defect_is_not_reported_as_a_users_mistake(tmp_path, monkeypatch):
    def broken(*args):
        raise ValueError("of the code")

    monkeypatch.setattr("potara_jax.jobs.table.run_cell", broken)
    with pytest.raises(RuntimeError, match="defect"):
        potara("run", DIGITS, "--out", tmp_path / "run", "--cache", tmp_path)


@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"]])
def test_a_closed_pipe_is_not_an_error(words):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "potara_jax.cli.main", *words]
    ended = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")
