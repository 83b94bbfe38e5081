"""The programs of the page on adding to the project, as their reader copies them."""

import re
from pathlib import Path

import pytest

from potara_jax.federated import registry as federated
from potara_jax.merging import registry as merging

_PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def example(heading: str) -> str:
    """The first program below a heading."""
    text = _PAGE.read_text(encoding="utf-8")
    section = text[text.index(f"## {heading}\n") :]
    return re.search(r"```python\n(.*?)```", section, re.S).group(1)


def forget_later(patch: pytest.MonkeyPatch) -> None:
    """Undo with `patch` what files register from here on."""
    federated.algorithms(), merging.merges(), merging.weights()  # all of the packages
    for module, name in (
        (federated, "_ENTRIES"),
        (merging, "_MERGES"),
        (merging, "_WEIGHTS"),
    ):
        patch.setattr(module, name, dict(getattr(module, name)))
