import dataclasses

import pytest

from potara_jax.runs.loading import load_file


def written(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_becomes_a_module(tmp_path):
    text = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class Settings:
    rank: int = 8
"""
    module = load_file(written(tmp_path, text))
    assert dataclasses.replace(module.Settings(), rank=4).rank == 4


def test_a_file_named_like_a_module_does_not_hide_it(tmp_path):
    load_file(written(tmp_path, "x = 1", name="json.py"))
    import json

    assert json.dumps([1]) == "[1]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nx.missing\n", "line 2: AttributeError: 'int' object"),
        ("x = 1\n\ndef (:\n", "line 3: SyntaxError"),
        ("raise ValueError('two\\nlines')", "line 1: ValueError: two lines"),
        ("import json\njson.loads('{')", "line 2: JSONDecodeError"),
    ],
)
def test_an_error_is_one_line_with_the_place(tmp_path, text, expected):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"mine\.py, line") as error:
        load_file(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_python_or_does_not_exist_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is not a Python file"):
        load_file(tmp_path / "notes.txt")
    for name in ("missing.py", ""):
        with pytest.raises(ValueError, match="does not exist, or is no file"):
            load_file(tmp_path / name)
