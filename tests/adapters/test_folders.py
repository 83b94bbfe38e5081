"""Folders and files appear whole, and what killed processes leave is removed."""

import os
import subprocess
import sys

import pytest

from potara_jax.adapters import folders
from potara_jax.runs import files

KILLED = """
import os, signal, sys
from pathlib import Path
from potara_jax.adapters import folders
from potara_jax.runs import files

target = Path(sys.argv[2])
write = folders.atomic_folder if sys.argv[1] == "folder" else files.atomic_file
with write(target) as new:
    if sys.argv[1] == "folder":
        (new / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(kind, target):
    words = [sys.executable, "-c", KILLED, kind, str(target)]
    assert subprocess.run(words, check=False).returncode == -9


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(path):
    with folders.atomic_folder(path) as new:
        (new / "whole").touch()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_left_is_removed_by_the_next_write(kind, tmp_path):
    for _ in range(2):
        killed(kind, tmp_path / "x[1]")
        assert [name[:6] for name in names(tmp_path)] == [".x[1]."]
    write = write_folder if kind == "folder" else lambda x: files.write_text(x, "")
    write(tmp_path / "x[1]")
    assert names(tmp_path) == ["x[1]"]


def test_what_another_process_is_writing_stays(tmp_path):
    others = [".x.1", f".x.{os.getppid()}", ".x.part", ".xy.999999999", ".x"]
    for name in others:
        (tmp_path / name).touch()
    write_folder(tmp_path / "x")
    assert names(tmp_path) == sorted([*others, "x"])


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    write_folder(tmp_path / "x")
    with pytest.raises(RuntimeError), folders.atomic_folder(tmp_path / "x") as new:
        (new / "half").touch()
        raise RuntimeError
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["whole"]
