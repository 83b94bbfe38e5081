"""Loading a user's Python file, which registers what it defines."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType


def load_file(path: Path) -> ModuleType:
    """Import a Python file, whose name need not be that of a module.

    Args:
      path: the file, such as one that registers an algorithm.

    Raises:
      ValueError: it is missing or no Python file, or running it raises; the message is
        one line that names the file and the line.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{path} does not exist, or is no file; name a Python file")
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        del sys.modules[spec.name]
        raise ValueError(_message(path, error)) from error
    return module


def _module_name(path: Path) -> str:
    """A name that hides no installed module."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"_file_{path.stem}_{digest}"


def _message(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    line = _line_of(path, error)
    where = f"{path}, line {line}" if line else str(path)
    return f"{where}: {type(error).__name__}: {reason}"


def _line_of(path: Path, error: Exception) -> int | None:
    """The last line of the file that ran; of a syntax error, its line."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return lines[-1] if lines else None
