"""Options parsed by tyro from types made at run time; mistakes as one line."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any, Union

import tyro

annotated: Any = Annotated
union: Any = Union
BARE = tyro.conf.arg(name="")  # options of what it marks have no prefix

_FRAME = re.compile(r"^│|│$|^[╭╰].*")
_RULE = re.compile(r"^(─+|-+)$")
# tyro's sentences, and this command's.
_SENTENCES = {
    r"Unrecognized options: (\S+?)(,.*)?": r"there is no option \1",
    r"Error parsing (\S+): invalid literal for int.*: (.*)": (
        r"\1 is \2: it must be a whole number"
    ),
    r"Error parsing (\S+): could not convert string to float: (.*)": (
        r"\1 is \2: it must be a number"
    ),
    r"Error parsing (\S+): no type matching (\S+) could be .*? from \[(.*?)\].*": (
        r"\1 is \3: it must be \2"
    ),
    r"Error parsing (\S+): Could not find valid parse .*: \[(.*)\]": (
        r"\1 cannot be \2"
    ),
    r"Error parsing (\S+): (.*)": r"\1: \2",
    r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*?),?\)\.": (
        r"\2 is \1: it must be one of \3"
    ),
    r"Missing from potara ([^:]*): (\S+) .*": r"\1 needs \2",
}


def parse(kind: Any, words: Sequence[str], *, help_words: Sequence[str]) -> Any:
    """What words say, as a value of a type; shows the help if they ask for it.

    Args:
      kind: the type.
      words: of the command line, without the program.
      help_words: of them, those of the command whose help explains a mistake.

    Raises:
      ValueError: the words cannot be parsed.
    """
    _describe(kind)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                kind,
                args=words,
                prog="potara",
                description="Federated personalisation of LoRA-adapted models.",
                config=(tyro.conf.OmitSubcommandPrefixes,),
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        command = " ".join(["potara", *help_words, "--help"])
        reason = explanation(shown.getvalue())
        raise ValueError(f"{reason}; see: {command}") from None


# --- Help ----------------------------------------------------------------------------


def _describe(kind: Any) -> None:
    """Make the docstrings of all fields the help of their options, in whole lines."""
    for part in typing.get_args(kind):  # of annotated types and unions
        _describe(part)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        texts = _texts_of_fields(kind)
        for field in dataclasses.fields(kind):
            if text := texts.get(field.name):
                field.metadata = MappingProxyType({**field.metadata, "help": text})
            _describe(field.type)


@functools.cache
def _texts_of_fields(kind: type) -> dict[str, str]:
    """The docstrings below a class's fields, without line breaks."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a class that is made at run time
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


# --- Mistakes ------------------------------------------------------------------------


def explanation(text: str) -> str:
    """The mistake that one of tyro's framed texts is about, in a sentence."""
    lines = [_FRAME.sub("", line.strip()).strip() for line in text.splitlines()]
    parts = [
        " ".join(part).strip()
        for is_rule, part in itertools.groupby(lines, lambda x: bool(_RULE.match(x)))
        if not is_rule
    ]
    # The title is in the frame; without a frame, it is the first part.
    first, *others = parts[len(parts) > 1 and not text.startswith("╭") :]
    for pattern, sentence in _SENTENCES.items():
        if matched := re.fullmatch(pattern, first):
            first = matched.expand(sentence)
            break
    return first.rstrip(".") + _suggestion(others)


def _suggestion(parts: Sequence[str]) -> str:
    """The option that was perhaps meant."""
    for part in parts:
        option = re.match(r"Perhaps you meant: (--\S+)", part)
        if option:
            return f" (did you mean {option[1]}?)"
    return ""
