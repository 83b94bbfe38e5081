"""The figures of an accelerator, most important first, within a given time.

python -m benchmarks.accelerator --help    (or: make bench-accelerator)

It needs jax, flax, optax and orbax alone; PyTorch, transformers and PEFT for what is
measured beside them. Every line is printed, and kept in `results.json`, as soon as it
is there. `--tiny` runs every case at sizes that a CPU manages in a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

# What PyTorch needs beside JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.85")

import jax

from benchmarks import accelerator_cases as cases
from benchmarks.accelerator_cases import FULL, TINY, Lab
from benchmarks.measure import Line
from potara_jax.runs import files

_PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "peft")


def main() -> int:
    """`python -m benchmarks.accelerator [options]`; 2 for a mistake, 1 for a fault."""
    options = _options()
    unknown = [name for name in options.cases if name not in cases.CASES]
    if unknown:
        known = ", ".join(cases.CASES)
        print(f"accelerator: no case '{unknown[0]}': choose from {known}")
        return 2
    record: dict[str, Any] = {"machine": _machine(), "lines": [], "failed": {}}
    print(json.dumps(record["machine"]), flush=True)
    lab = Lab(TINY if options.tiny else FULL, options.out)
    began = time.perf_counter()
    for name in options.cases:
        spent = time.perf_counter() - began
        if spent > options.seconds:
            record["failed"][name] = f"left out: {spent:.0f} s are spent"
            continue
        print(f"{spent:.0f} s: {name}", flush=True)
        _run(name, lab, record, options.out)
    record["seconds"] = time.perf_counter() - began
    _keep(record, options.out)
    print(json.dumps(record["failed"], indent=1), flush=True)
    return 1 if record["failed"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    known = ", ".join(cases.CASES)
    add("--out", type=Path, default=Path("runs/accelerator"), help="folder of results")
    add("--cases", nargs="+", default=list(cases.CASES), help=f"any of: {known}")
    add("--seconds", type=float, default=420, help="after these no case begins")
    add("--tiny", action="store_true", help="tiny sizes, to see that all cases run")
    return parser.parse_args()


def _run(name: str, lab: Lab, record: dict[str, Any], out: Path) -> None:
    """All lines of a case, each kept at once; one that fails does not end the run."""
    try:
        for line in _timed(cases.CASES[name](lab), record, name):
            print(_shown(line), flush=True)
            record["lines"].append({"case": name, **line._asdict(), "met": line.met})
            _keep(record, out)
    except ModuleNotFoundError as error:
        record["failed"][name] = f"{error.name} is not installed"
    except Exception as error:
        traceback.print_exc(limit=-4)
        record["failed"][name] = f"{type(error).__name__}: {error}"[:400]
    _keep(record, out)


def _timed(lines: Iterator[Line], record: dict[str, Any], name: str) -> Iterator[Line]:
    began = time.perf_counter()
    yield from lines
    record.setdefault("case_seconds", {})[name] = time.perf_counter() - began


def _shown(line: Line) -> str:
    aim = f" (aim {line.aim}: {'met' if line.met else 'NOT met'})" if line.aim else ""
    return f"  {line.what}: {line.measured} | {line.reference} | {line.ratio:.3g}{aim}"


def _keep(record: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "results.json", record)


def _machine() -> dict[str, Any]:
    """The device and the software of the figures."""
    device = jax.devices()[0]
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"device": device.device_kind, "driver": _driver(), "versions": versions}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
