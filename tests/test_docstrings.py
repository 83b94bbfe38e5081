"""Docstrings describe parameters, fields and errors in Google's form, completely."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "potara_jax"
FILES = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
ORDER = ("", "Args", "Attributes", "Returns", "Yields", "Raises", "Examples")
ENTRY = r"  \*{0,2}[\w.]+: "
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
    """The public classes, functions and methods of a module or class."""
    for node in body:
        if isinstance(node, Definition) and re.match("[^_]|__init__", node.name):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


def names(node: Definition) -> list[str]:
    """A function's parameters, or a class's fields, in their order."""
    if isinstance(node, ast.ClassDef):
        fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
        fields = [x for x in fields if "ClassVar" not in ast.unparse(x.annotation)]
        everything = [x.target.id for x in fields if isinstance(x.target, ast.Name)]
    else:
        args = node.args
        parameters = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs]
        everything = [x.arg for x in (*parameters, args.kwarg) if x is not None]
    return [x for x in everything if x not in ("self", "cls") and x[0] != "_"]


def sections(text: str) -> dict[str, list[str]]:
    """A docstring's lines by section; those before the first have the name ""."""
    parts = re.split(rf"^({'|'.join(ORDER[1:])}):\n", text, flags=re.M)
    pairs = zip(["", *parts[1::2]], parts[::2], strict=True)
    return {name: lines.strip("\n").split("\n") for name, lines in pairs}


def faults(node: Definition, text: str) -> Iterator[str]:
    """What a docstring has in another form than the others."""
    parts, expected = sections(text), names(node)
    prose, several = "\n".join(parts[""]), "\n" in text
    if several and parts[""][1:] and parts[""][1]:
        yield "the summary takes more than a line"
    if list(parts) != [name for name in ORDER if name in parts]:
        yield f"the sections' order is {list(parts)}"
    bare = re.sub(r"`[^`]*`", "", text.partition("\nExamples:")[0])
    if "`" in bare or re.search(r"^(?!    ).*\[([A-Z]\w*|\.\.\.)(, |\])", bare, re.M):
        yield "a shape or a name is not between backticks"
    if re.search(r"\braises `|^Raises\b|\. Raises\b|[;,] `\w+Error`", prose, re.M):
        yield "what it raises stands outside Raises"
    if re.search(r"^Returns\b|\. Returns\b", prose, re.M):
        yield "what it returns stands outside Returns"
    for name in ("Args", "Attributes", "Raises"):
        for place, line in enumerate(parts.get(name, ())):
            if not re.match(rf"{ENTRY}|    \S" if place else ENTRY, line):
                yield f"in {name}: '{line}'"
    for name in ("Returns", "Yields"):
        if not re.match(r"  \S", parts.get(name, ["  x"])[0]):
            yield f"{name} is not indented by two"
    kind, mentioned = "Args", several and len(expected) > 1
    if isinstance(node, ast.ClassDef):
        fields = "|".join(expected or ["-"])
        kind, mentioned = "Attributes", several and re.search(rf"`({fields})\b", prose)
    if kind in parts:
        lines = [line for line in parts[kind] if re.match(ENTRY, line)]
        given = [line.split(":")[0].strip(" *") for line in lines]
        if expected and given != expected:
            yield f"{kind} describes {given} in place of {expected}"
    elif mentioned:
        yield f"more than a line, and no {kind}"
    else:
        for name in expected:
            if re.search(rf"^ *{name}\b[\w, ]*: |[.;] `{name}\b.*?`( `.*?`)?: ", prose):
                yield f"'{name}' is described outside {kind}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_docstrings_describe_all_or_nothing(name):
    """In Google's sections.

    A function with several parameters and more to say than a line describes them all,
    as does a class that says anything of a field; what is raised or returned stands in
    a section, entries are indented by two, and a summary is one line.
    """
    wrong = [
        f"{place}: {fault}"
        for place, node in definitions(ast.parse(FILES[name].read_text()).body, "")
        for fault in faults(node, ast.get_docstring(node) or "")
    ]
    assert wrong == []


GOOD = """The product.

Args:
  x: `[B]`.
  factor: of all numbers;
    it may be zero.

Raises:
  ValueError: it is negative.
"""
BAD = (
    ("no Args", GOOD.replace("Args:\n  x: `[B]`.", "Of both.")),
    ("['x', 'scale'] in place of", GOOD.replace("factor:", "scale:")),
    ("['x'] in place of", GOOD.replace("  factor:", "    factor:")),
    ("in Args: '     it may", GOOD.replace("    it may", "     it may")),
    ("in Raises: '    Value", GOOD.replace("  ValueError", "    ValueError")),
    ("in Raises: 'Smith 2020.'", GOOD + "\nSmith 2020.\n"),
    ("outside Raises", GOOD.replace("\n\n", "\n\nRaises `ValueError` at -1.\n\n", 1)),
    ("outside Raises", GOOD.replace("product.", "product; `ValueError` at -1.")),
    ("outside Returns", GOOD.replace("\n\n", "\n\nReturns it.\n\n", 1)),
    ("summary takes more", GOOD.replace("The product.", "The product\nof both.")),
    ("between backticks", GOOD.replace("`[B]`", "[B, D]")),
    ("between backticks", GOOD.replace("`[B]`", "`[B]")),
    ("order is", GOOD + "\nReturns:\n  It.\n"),
    ("Returns is not", GOOD.replace("Raises:\n", "Returns:\n    It.\n\nRaises:\n")),
    ("'x' is described outside", "The product; `x` `[B]`: of numbers."),
)
FIELDS = (
    ("no Attributes", "A pair.\n\nThe `left` one counts twice."),
    ("'left' is described outside", "A pair. `left`: it counts twice."),
    ("describes ['left']", "A pair.\n\nAttributes:\n  left: it counts twice."),
)


@pytest.mark.parametrize(("fault", "text"), BAD)
def test_the_faults_of_a_functions_docstring(fault, text):
    function = ast.parse("def scaled(x, *, factor): ...").body[0]
    assert list(faults(function, GOOD)) == []
    assert any(fault in each for each in faults(function, text))


@pytest.mark.parametrize(("fault", "text"), FIELDS)
def test_the_faults_of_a_classs_docstring(fault, text):
    record = ast.parse("class Pair:\n    left: int\n    right: int").body[0]
    assert any(fault in each for each in faults(record, text))
