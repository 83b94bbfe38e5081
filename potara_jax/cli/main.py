"""`potara`: every job from one command line.

    potara run EXPERIMENT [options]
    potara compare EXPERIMENT [options]
    potara study EXPERIMENT [options]
    potara simulate EXPERIMENT [options]
    potara merge --federated DIR --local DIR --out DIR [options]
    potara inspect DIR
    potara export RUN [--folded] [options]

A user's mistake is one line on standard error and exit status 2.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tyro
from rich.console import Console

# Many decompositions of small matrices: BLAS threads only wait for each other, most of
# all where other processes are busy. It is read when NumPy and JAX are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_USER_ERROR = 2
_INTERRUPTED = 130
_NO_READER = 141  # as of a program that SIGPIPE ends


def _experiment(words: list[str]) -> int:
    from potara_jax.jobs import run

    return run.main(words)


def _merge(words: list[str]) -> int:
    from potara_jax.cli import adapters as commands

    text = f"{inspect.cleandoc(commands.Merge.__doc__)}\n\n{commands.methods_help()}"
    parse = lambda: tyro.cli(
        commands.Merge, args=words[1:], prog="potara merge", description=text
    )
    return _guarded(parse, commands.merge)


def _inspect(words: list[str]) -> int:
    from potara_jax.cli import adapters as commands

    parse = lambda: tyro.cli(commands.Inspect, args=words[1:], prog="potara inspect")
    return _guarded(parse, commands.inspect)


def _export(words: list[str]) -> int:
    from potara_jax.cli import export

    parse = lambda: tyro.cli(export.Export, args=words[1:], prog="potara export")
    return _guarded(parse, export.export)


def _guarded(parse: Callable, command: Callable) -> int:
    options = parse()
    try:
        command(options, Console())
    except ValueError as error:
        return _refused(" ".join(str(error).split()))
    except BrokenPipeError:
        raise
    except OSError as error:
        name = error.filename or "a file"
        reason = error.strerror or error
        return _refused(f"cannot use {name} ({reason}); name another folder")
    return 0


def _refused(reason: str) -> int:
    print(f"potara: {reason}", file=sys.stderr)
    return _USER_ERROR


class Command(NamedTuple):
    """What carries out a command, given all words, and its line in the usage."""

    run: Callable[[list[str]], int]
    summary: str


COMMANDS = {
    "run": Command(_experiment, "run an experiment: a table of methods and a report"),
    "compare": Command(_experiment, "compare federated algorithms, on an experiment"),
    "study": Command(_experiment, "compare ways to weigh, on an experiment"),
    "tune": Command(_experiment, "search learning rates for federated algorithms"),
    "simulate": Command(_experiment, "a federation of many thousands of clients"),
    "export": Command(_export, "write a run's models for PEFT, transformers and vLLM"),
    "merge": Command(_merge, "merge LoRA adapters that Hugging Face PEFT wrote"),
    "inspect": Command(_inspect, "show what such an adapter holds"),
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
        print("potara: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # as of `potara run digits --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER


def _command(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]].run(words)
    if words and not {"-h", "--help"} & set(words):
        known = ", ".join(COMMANDS)
        return _refused(f"unknown command '{words[0]}'; there are: {known}")
    print(_usage())
    return 0 if words else _USER_ERROR


def _usage() -> str:
    lines = [f"  {name:10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: potara COMMAND [options]\n",
            *lines,
            "\npotara COMMAND --help shows every option with its default",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
