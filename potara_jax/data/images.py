"""Labelled images from the user's files.

    a.npz        `images` uint8 `[N, H, W, C]`, `labels` `[N]`, optional `names`
    a folder     one sub-folder a class, of image files

Dimension letters: `N` images, `H` `W` sides, `C` colours, `K` classes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


class Images(NamedTuple):
    """`images` uint8 `[N, H, W, C]`, `labels` int32 `[N]` below `K`, their `names`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def read(paths: Sequence[str | os.PathLike[str]], *, side: int | None = None) -> Images:
    """The images of several files or folders together.

    side: to which all are resized, in pixels; default: they have one size already.
    Raises `ValueError` with the file and what is wrong with it.
    """
    return together([_read_one(Path(path), side) for path in paths], paths)


def together(parts: Sequence[Images], sources: Sequence[object]) -> Images:
    """Images of several sources as one, with the classes of all of them by name.

    Raises `ValueError` where they differ in size.
    """
    shapes = {
        part.images.shape[1:]: source
        for part, source in zip(parts, sources, strict=True)
    }
    if len(shapes) > 1:
        told = ", ".join(f"{source} {_size(shape)}" for shape, source in shapes.items())
        raise ValueError(f"images differ in size: {told}; resize them with --side")
    names = sorted({name for part in parts for name in part.names}, key=_by_number)
    place = {name: number for number, name in enumerate(names)}
    labels = [np.array([place[n] for n in p.names], np.int32)[p.labels] for p in parts]
    images = np.concatenate([part.images for part in parts])
    return Images(images, np.concatenate(labels), tuple(names))


def _by_number(name: str) -> tuple[bool, int, str]:
    return not name.isdigit(), int(name) if name.isdigit() else 0, name


def _size(shape) -> str:
    return " x ".join(map(str, shape))


def _read_one(path: Path, side: int | None) -> Images:
    if path.is_dir():
        return _of_folder(path, side)
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"{path} is neither an .npz file nor a folder of classes")
    return _of_arrays(path, side)


# --- Arrays --------------------------------------------------------------------------


def _of_arrays(path: Path, side) -> Images:
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is damaged or no .npz file ({error})") from None
    if not {"images", "labels"} <= set(found):
        held = ", ".join(found) or "nothing"
        raise ValueError(f"{path} holds {held}: it needs images and labels")
    images, labels = found["images"], found["labels"]
    _check_arrays(path, images, labels)
    names = [str(name) for name in found.get("names", ())]
    if names and labels.max() >= len(names):
        raise ValueError(f"{path} has {len(names)} names, but a label {labels.max()}")
    names = names or [str(number) for number in range(int(labels.max()) + 1)]
    images = images[..., None] if images.ndim == 3 else images
    if side:
        images = np.stack([_resized(Image.fromarray(_flat(x)), side) for x in images])
    return Images(images, labels.astype(np.int32), tuple(names))


def _flat(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image


def _check_arrays(path: Path, images, labels) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        shape = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{path}: images are {shape}: they must be uint8 [N, H, W, C]")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        shape = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(
            f"{path}: labels are {shape}: they must be {len(images)} integers"
        )
    if labels.min() < 0:
        raise ValueError(f"{path}: a label is {labels.min()}: it must be 0 or more")


# --- Folders -------------------------------------------------------------------------


def _of_folder(path: Path, side) -> Images:
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    files = [(n, f) for n, own in enumerate(classes) for f in sorted(own.iterdir())]
    files = [(n, f) for n, f in files if f.suffix.lower() in _SUFFIXES]
    empty = set(range(len(classes))) - {number for number, _ in files}
    if empty or not classes:
        where = classes[min(empty)] if empty else path
        raise ValueError(
            f"{where} holds no image; a folder needs sub-folders of images"
        )
    images = [_opened(file, side) for _, file in files]
    for (_, file), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            told = f"{file} is {_size(image.shape)}, others {_size(images[0].shape)}"
            raise ValueError(f"{told}; resize them with --side")
    labels = np.array([number for number, _ in files], np.int32)
    return Images(np.stack(images), labels, tuple(own.name for own in classes))


def _opened(path: Path, side) -> np.ndarray:
    try:
        with Image.open(path) as image:
            kept = image if image.mode == "L" else image.convert("RGB")
            return _resized(kept, side)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} is no readable image ({error})") from None


def _resized(image: Image.Image, side) -> np.ndarray:
    image = image.resize((side, side), Image.Resampling.BILINEAR) if side else image
    found = np.asarray(image, np.uint8)
    return found[..., None] if found.ndim == 2 else found
