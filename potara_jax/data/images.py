"""Labelled images from the user's files.

    a.npz        `images` uint8 `[N, H, W, C]`, `labels` `[N]`, optional `names`
    a folder     one sub-folder a class, of image files

Dimension letters: `N` images, `H` `W` sides, `C` colours, `K` classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


class Images(NamedTuple):
    """`images` uint8 `[N, H, W, C]`, `labels` int32 `[N]` below `K`, their `names`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def read(paths: Sequence[str | os.PathLike[str]], *, side: int | None = None) -> Images:
    """The images of several files or folders together, of the classes that have any.

    side: to which all are resized, in pixels; default: they have one size already.
    Raises `ValueError` with the file and what is wrong with it.
    """
    return together([_read_one(Path(path), side) for path in paths], paths)


def together(parts: Sequence[Images], sources: Sequence[object]) -> Images:
    """Images of several sources as one, with the classes of all of them by name.

    Raises `ValueError` where they differ in size.
    """
    pixels = _alike([part.images for part in parts])
    shapes = {
        own.shape[1:]: source for own, source in zip(pixels, sources, strict=True)
    }
    if len(shapes) > 1:
        told = ", ".join(f"{source} {_size(shape)}" for shape, source in shapes.items())
        raise ValueError(f"images differ in size: {told}; resize them with --side")
    used = {p.names[label] for p in parts for label in np.unique(p.labels)}
    names = sorted(used, key=_by_number)
    place = {name: number for number, name in enumerate(names)}
    numbers = lambda part: np.array([place.get(n, -1) for n in part.names], np.int32)
    labels = [numbers(part)[part.labels] for part in parts]
    return Images(np.concatenate(pixels), np.concatenate(labels), tuple(names))


def once(found: Images) -> tuple[Images, int, int]:
    """Every image once; how many were left out, and how many of those for that their
    copies have several labels: of those none is kept.
    """
    flat = np.ascontiguousarray(found.images).reshape(len(found.labels), -1)
    same: dict[bytes, list[int]] = {}
    for number, row in enumerate(flat):
        same.setdefault(hashlib.blake2b(row, digest_size=16).digest(), []).append(
            number
        )
    alike = lambda own: len({int(found.labels[i]) for i in own}) == 1
    kept = np.sort([own[0] for own in same.values() if alike(own)]).astype(int)
    unclear = sum(len(own) for own in same.values() if not alike(own))
    images, labels = found.images[kept], found.labels[kept]
    return Images(images, labels, found.names), len(flat) - len(kept), unclear


def _by_number(name: str) -> tuple[bool, int, str]:
    number = name.isascii() and name.isdigit() and len(name) < 19
    return not number, int(name) if number else 0, name


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
    except Exception as error:  # whatever a damaged file makes NumPy raise
        raise ValueError(f"{path} is damaged or no .npz file ({error})") from None
    if not {"images", "labels"} <= set(found):
        held = ", ".join(found) or "nothing"
        raise ValueError(f"{path} holds {held}: it needs images and labels")
    images, labels = found["images"], found["labels"]
    _check_arrays(path, images, labels)
    if "names" in found:
        names = _names(path, found["names"], labels)
    else:
        used, labels = np.unique(labels, return_inverse=True)
        names = tuple(map(str, used))
    images = images[..., None] if images.ndim == 3 else images
    if side and images.shape[1:3] != (side, side):
        images = np.stack([_each_colour(image, side) for image in images])
    return Images(images, labels.reshape(-1).astype(np.int32), names)


def _names(path: Path, found, labels) -> tuple[str, ...]:
    kinds = np.asarray(found).reshape(-1).tolist()
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in kinds)
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: names are no texts ({error})") from None
    if labels.max() >= len(names):
        raise ValueError(f"{path} has {len(names)} names, but a label {labels.max()}")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(
            f"{path} names two classes '{twice[0]}'; name each its own way"
        )
    return names


def _each_colour(image: np.ndarray, side: int) -> np.ndarray:
    colours = (
        Image.fromarray(np.ascontiguousarray(x)) for x in image.transpose(2, 0, 1)
    )
    return np.concatenate([_resized(colour, side) for colour in colours], -1)


def _check_arrays(path: Path, images, labels) -> None:
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise ValueError(
            f"{path}: images and labels are no arrays; np.savez saves such"
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        shape = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{path}: images are {shape}: they must be uint8 [N, H, W, C]")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise ValueError(
            f"{path}: images are {list(images.shape)}, colours first: they must be "
            "[N, H, W, C]; transpose them"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        shape = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(
            f"{path}: labels are {shape}: they must be {len(images)} integers"
        )
    if labels.min() < 0:
        raise ValueError(f"{path}: a label is {labels.min()}: it must be 0 or more")


# --- Folders -------------------------------------------------------------------------


def _of_folder(path: Path, side) -> Images:
    classes = [p for p in _seen(path) if p.is_dir()]
    files = [(n, f) for n, own in enumerate(classes) for f in _seen(own)]
    files = [(n, f) for n, f in files if f.suffix.lower() in _SUFFIXES]
    empty = set(range(len(classes))) - {number for number, _ in files}
    if empty or not classes:
        where = classes[min(empty)] if empty else path
        raise ValueError(
            f"{where} holds no image; a folder needs sub-folders of images"
        )
    images = _alike([_opened(file, side) for _, file in files])
    for (_, file), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            told = f"{file} is {_size(image.shape)}, others {_size(images[0].shape)}"
            raise ValueError(f"{told}; resize them with --side")
    labels = np.array([number for number, _ in files], np.int32)
    return Images(np.stack(images), labels, tuple(own.name for own in classes))


def _seen(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without what is hidden."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _alike(images: list[np.ndarray]) -> list[np.ndarray]:
    """Grey images in three colours, where others are in colour."""
    colours = max(image.shape[-1] for image in images)
    return [np.repeat(x, colours, -1) if x.shape[-1] == 1 else x for x in images]


def _opened(path: Path, side) -> np.ndarray:
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                told = f"of mode {image.mode}; save it with 8 bits a colour"
                raise ValueError(told)
            kept = image if image.mode == "L" else image.convert("RGB")
            return _resized(kept, side)
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise ValueError(f"{path} is no readable image ({error})") from None


def _resized(image: Image.Image, side) -> np.ndarray:
    image = image.resize((side, side), Image.Resampling.BILINEAR) if side else image
    found = np.asarray(image, np.uint8)
    return found[..., None] if found.ndim == 2 else found
