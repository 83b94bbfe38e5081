"""The programs of the page on adding to the project, as their reader copies them."""

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def example(heading: str) -> str:
    """The first program below a heading."""
    text = _PAGE.read_text(encoding="utf-8")
    section = text[text.index(f"## {heading}\n") :]
    return re.search(r"```python\n(.*?)```", section, re.S).group(1)
