"""Tables of numbers in the user's files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from potara_jax.data import records


def read_numbers(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a table of numbers, by name, `[N]` each, float64.

    Args:
      path: a file (.csv, .tsv, .txt, also .gz) whose first line names the columns.

    Returns:
      The columns in their order.

    Raises:
      ValueError: the file is missing or damaged, or a cell is no number; names the
        line, the column and the cell.
    """
    path = Path(path)
    rows = records.read_table(path)
    if not rows:
        raise ValueError(f"{path} has no rows below the names of its columns")
    return {
        name: np.array([_number(path, *row, name) for row in rows])
        for name in rows[0][1]
    }


def _number(path: Path, line: int, record: records.Record, name: str) -> float:
    try:
        value = float(record[name])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(
            f"{path}, line {line}: {name} is '{record[name]}', which is no number; "
            "replace it, or leave the column or the line out"
        )
    return value
