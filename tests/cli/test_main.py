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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run digits", "Trace a few rounds of every phase into the run folder, for"),
        ("run digits", "Dirichlet concentration of a client's classes or tasks;"),
        ("run digits", "which clients may then share: for more clients than images."),
        ("export", "A ViT's modules have other names"),
        ("merge", "or count it as unchanged in the others."),
    ],
)
def test_help_breaks_no_line_where_its_source_does(
    capsys, words, sentence, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "1000")
    _, text = shown(capsys, *words.split(), "--help")
    assert any(sentence in line for line in text.splitlines())


# --- Mistakes ------------------------------------------------------------------------


def refused(capsys, *words) -> str:
    """The line of a refused command, which prints nothing else."""
    assert main([*words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    start, line = printed.err.split(": ", 1)
    assert start == "potara"
    return line.strip()


@pytest.mark.parametrize("words", [[], ["merg"], ["digits"]])
def test_an_unknown_command_is_status_two(capsys, words):
    line = refused(capsys, *words)
    assert all(name in line for name in (*words, *_COMMANDS))


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("words", [[], ["digit"], ["--lora.rank", "3", "digits"]])
def test_a_missing_or_unknown_experiment_is_answered_by_the_known_ones(
    capsys, job, words
):
    line = refused(capsys, job, *words)
    assert all(name in line for name in catalogue.names()) and "a Python file" in line
    assert words != ["digit"] or "there is no experiment digit;" in line


SEE = "; see: potara run digits --help"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "run digits --lora.rnak 3",
            f"there is no option --lora.rnak (did you mean --lora.rank?){SEE}",
        ),
        ("run digits --scored 3", f"there is no option --scored{SEE}"),
        (
            "run digits --lora.rank many",
            f"--lora.rank is 'many': it must be a whole number{SEE}",
        ),
        ("run digits --lora.alpha x", f"--lora.alpha is 'x': it must be a number{SEE}"),
        (
            "run digits --local.start nope",
            "--local.start is 'nope': it must be one of 'shared', 'independent', "
            f"'federated'{SEE}",
        ),
        (
            "run digits --compute.chunk many",
            f"--compute.chunk is 'many': it must be INT|{{auto}}{SEE}",
        ),
        (
            "export x --clients a",
            "--clients cannot be 'a'; see: potara export --help",
        ),
        ("export", "export needs PATH; see: potara export --help"),
        ("merge --weight 1", "merge needs --out; see: potara merge --help"),
    ],
)
def test_an_unknown_option_or_value_is_one_line_that_names_the_help(
    capsys, words, line
):
    assert refused(capsys, *words.split()) == line


@pytest.mark.parametrize(
    "words", ["run digits --lora.rank", "run digits more", "list nothing"]
)
def test_other_mistakes_are_one_line_too(capsys, words):
    command = " ".join(words.split()[:-1]).replace(" --lora.rank", "")
    line = refused(capsys, *words.split())
    assert line.endswith(f"; see: potara {command} --help")
    assert words.split()[-1] in line and not set("│─|") & set(line)


def test_a_mistake_is_the_same_line_where_the_terminal_has_no_frames():
    words = [sys.executable, "-m", "potara_jax.cli.main", "run", "digits", "--rnk"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = subprocess.run(words, env=ascii_only, stderr=subprocess.PIPE).stderr
    expected = "potara: there is no option --rnk; see: potara run digits --help\n"
    assert line == expected.encode()


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
            "merging.methods is gird: it must be one of ",
        ),
        (["--merging.methods", "uniform,grid"], "'potara delta, rank r', "),
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


@pytest.mark.parametrize("more", [[], ["--rerun"]])
def test_a_refused_command_changes_nothing_in_a_run_folder(tmp_path, more):
    out = tmp_path / "run"
    (out / "cells").mkdir(parents=True)
    (out / "config.json").write_text('{"job": "run", "experiment": "digits"}')
    if more:  # of a run with a finished cell
        (out / "cells" / "0.5-seed-3.json").write_text('{"methods": []}')
    contents = lambda: {p: p.read_bytes() for p in out.rglob("*.json")}
    before = contents()
    places = ["--out", str(out), "--cache", str(tmp_path), "--lora.rank", "65"]
    assert main(["run", "digits", *options(DIGITS), *places, *more]) == 2
    assert contents() == before


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
