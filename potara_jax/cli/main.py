"""`potara`: everything from one command line.

    potara run digits                      what is done, and with which experiment
    potara compare tasks --cells.seeds 0   any setting of the experiment
    potara study my_experiment.py          an experiment in a file
    potara list algorithms
    potara export runs/digits
    potara merge --federated DIR --local DIR --out DIR
    potara inspect DIR

A user's mistake is one line on standard error and exit status 2.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from potara_jax.cli.parsing import annotated, parse, union

# With many decompositions of small matrices, BLAS threads only wait for each other,
# above all if other processes are busy. Read when NumPy and JAX are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
gc.set_threshold(50_000, 50, 50)  # imports make many objects, and little garbage

USER_ERROR = 2
INTERRUPTED = 130
_NO_READER = 141  # as of a program that SIGPIPE ends

# Each command's module, with `command(words) -> (type to parse, text for --help)`, and
# what it does. A module is imported only if its command is used.
_JOBS = "potara_jax.cli.jobs"
_COMMANDS = {
    "run": (_JOBS, "train, merge in every way, and show a table of methods"),
    "compare": (_JOBS, "compare federated algorithms at equal bytes and steps"),
    "study": (_JOBS, "compare merge weights with the default one and the oracles"),
    "tune": (_JOBS, "search step sizes for federated algorithms"),
    "simulate": (_JOBS, "federate many thousands of clients, a cohort at a time"),
    "list": ("potara_jax.cli.listing", "show experiments, algorithms, merges, weights"),
    "export": ("potara_jax.cli.export", "write a run's models for PEFT and vLLM"),
    "merge": ("potara_jax.cli.merge", "merge LoRA adapters that PEFT wrote"),
    "inspect": ("potara_jax.cli.inspect", "show what such an adapter holds"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """`potara COMMAND ...`; the exit status is 2 for a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _command(words)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:  # maybe while packages are imported
        print("potara: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as of `potara run digits --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER


def _command(words: list[str]) -> int:
    """Parse a command and carry it out."""
    try:
        parse(_tree(words), words, help_words=_command_of(words))()
    except ValueError as error:
        return _refuse(" ".join(str(error).split()))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:  # as where NumPy misses a file
            return _refuse(f"a file cannot be used: {error}")
        reason = error.strerror or error
        return _refuse(f"cannot use {error.filename} ({reason}); name another")
    return 0


def _refuse(reason: str) -> int:
    print(f"potara: {reason}", file=sys.stderr)
    return USER_ERROR


def _tree(words: list[str]) -> Any:
    """The type that the words are parsed as: a union of all commands.

    Only the command in use has its options; the others are not imported. Raises
    `ValueError` for a command that does not exist.
    """
    if not words:
        raise ValueError(f"name a command: {', '.join(_COMMANDS)}; see: potara --help")
    chosen = words[0]
    if not chosen.startswith("-") and chosen not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise ValueError(f"there is no command {chosen}; choose from {known}")
    branches = []
    for name, (module, summary) in _COMMANDS.items():
        kind, text = _Other, None
        if name == chosen:
            kind, text = importlib.import_module(module).command(words)
        named = tyro.conf.subcommand(name, description=text or summary)
        branches.append(annotated[kind, named])
    return union[tuple(branches)]


def _command_of(words: list[str]) -> list[str]:
    """The words that name what is done: a command, and a job's experiment."""
    number = 2 if words and _COMMANDS.get(words[0], ("",))[0] == _JOBS else 1
    return list(itertools.takewhile(lambda x: not x.startswith("-"), words[:number]))


@dataclasses.dataclass(frozen=True)
class _Other:
    """A command that is not in use."""


if __name__ == "__main__":
    sys.exit(main())
