"""Labelled images from the user's files.

    a.npz        `images` uint8 `[N, H, W, C]`, `labels` `[N]`, optional `names`
    a folder     one sub-folder of image files per class

Dimension letters: `N` images, `H` `W` sides, `C` colours, `K` classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from potara_jax.data.labels import by_number

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


class Images(NamedTuple):
    """`images` uint8 `[N, H, W, C]`, `labels` int32 `[N]` below `K`, `names` of `K`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def select(self, chosen: np.ndarray) -> Images:
        """Some of the images, with all names."""
        return Images(self.images[chosen], self.labels[chosen], self.names)


def read(paths: Sequence[str | os.PathLike[str]], *, side: int | None = None) -> Images:
    """Read the images of several files or folders together.

    Args:
      paths: .npz files, or folders with one sub-folder per class.
      side: pixels of a side, to which all images are resized. Default: as they are.

    Returns:
      The images, with the names of the classes that occur.

    Raises:
      ValueError: a file cannot be used; says which one and why.
    """
    return join([_read_one(Path(path), side) for path in paths], paths)


def join(parts: Sequence[Images], sources: Sequence[object]) -> Images:
    """Join the images of several sources; classes of the same name become one.

    Raises `ValueError`, naming sources, where images differ in size.
    """
    pixels = _in_colour([part.images for part in parts])
    shapes = {
        array.shape[1:]: source for array, source in zip(pixels, sources, strict=True)
    }
    if len(shapes) > 1:
        sizes = (f"{source} {_size(shape)}" for shape, source in shapes.items())
        raise ValueError(f"images differ in size: {', '.join(sizes)}; set side")
    used = {p.names[label] for p in parts for label in np.unique(p.labels)}
    names = sorted(used, key=by_number)
    place = {name: number for number, name in enumerate(names)}
    labels = [
        np.array([place.get(name, -1) for name in part.names], np.int32)[part.labels]
        for part in parts
    ]
    return Images(np.concatenate(pixels), np.concatenate(labels), tuple(names))


def without_duplicates(images: Images, log: Callable[[str], None]) -> Images:
    """Keep one of every duplicate; drop images whose copies disagree on the label.

    log: receives a line for the user if there are any.
    """
    copies: dict[bytes, list[int]] = {}
    for number, image in enumerate(images.images):
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        copies.setdefault(digest, []).append(number)
    agree = [g for g in copies.values() if len(set(images.labels[g].tolist())) == 1]
    kept = np.sort([group[0] for group in agree]).astype(int)
    unclear = len(images.labels) - sum(map(len, agree))
    if repeated := len(images.labels) - len(kept):
        log(f"{repeated} images are duplicates: one of each is kept")
    if unclear:
        log(f"{unclear} of them have copies with another label: none of those is kept")
    return images.select(kept)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _read_one(path: Path, side: int | None) -> Images:
    if path.is_dir():
        return _read_folder(path, side)
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"{path} is neither an .npz file nor a folder of classes")
    return _read_arrays(path, side)


# --- Arrays --------------------------------------------------------------------------


def _read_arrays(path: Path, side: int | None) -> Images:
    arrays = _load(path)
    images, labels = arrays["images"], arrays["labels"]
    _check_arrays(path, images, labels)
    if "names" in arrays:
        names = _names(path, arrays["names"], labels)
    else:
        used, labels = np.unique(labels, return_inverse=True)
        names = tuple(map(str, used))
    images = images[..., None] if images.ndim == 3 else images
    if side and images.shape[1:3] != (side, side):
        images = np.stack([_resize_array(image, side) for image in images])
    return Images(images, labels.reshape(-1).astype(np.int32), names)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # whatever a damaged file makes NumPy raise
        raise ValueError(f"{path} is damaged or no .npz file ({error})") from None
    if not {"images", "labels"} <= set(arrays):
        content = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} holds {content}: it needs images and labels")
    return arrays


def _names(path: Path, array: Any, labels: np.ndarray) -> tuple[str, ...]:
    values = np.asarray(array).reshape(-1).tolist()
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in values)
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: names are not valid text ({error})") from None
    if labels.max() >= len(names):
        raise ValueError(f"{path} has {len(names)} names, but a label {labels.max()}")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(
            f"{path} names two classes '{twice[0]}'; give every class another name"
        )
    return names


def _resize_array(image: np.ndarray, side: int) -> np.ndarray:
    colours = (
        Image.fromarray(np.ascontiguousarray(x)) for x in image.transpose(2, 0, 1)
    )
    return np.concatenate([_pixels(colour, side) for colour in colours], -1)


def _check_arrays(path: Path, images: Any, labels: Any) -> None:
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise ValueError(
            f"{path}: images and labels are not arrays; write them with np.savez"
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


def _read_folder(path: Path, side: int | None) -> Images:
    classes = [p for p in _visible(path) if p.is_dir()]
    files = [(n, f) for n, folder in enumerate(classes) for f in _visible(folder)]
    files = [(n, f) for n, f in files if f.suffix.lower() in _SUFFIXES]
    empty = set(range(len(classes))) - {number for number, _ in files}
    if empty or not classes:
        folder = classes[min(empty)] if empty else path
        raise ValueError(
            f"{folder} holds no image; a folder needs sub-folders of images"
        )
    images = _in_colour([_read_image(file, side) for _, file in files])
    for (_, file), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            sizes = f"{file} is {_size(image.shape)}, others {_size(images[0].shape)}"
            raise ValueError(f"{sizes}; set side, to resize them")
    labels = np.array([number for number, _ in files], np.int32)
    return Images(np.stack(images), labels, tuple(folder.name for folder in classes))


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _in_colour(images: list[np.ndarray]) -> list[np.ndarray]:
    """Repeat grey images in three colours if others are in colour."""
    colours = max(image.shape[-1] for image in images)
    return [np.repeat(x, colours, -1) if x.shape[-1] == 1 else x for x in images]


def _read_image(path: Path, side: int | None) -> np.ndarray:
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(
                    f"its mode is {image.mode}; save it with 8 bits per colour"
                )
            kept = image if image.mode == "L" else image.convert("RGB")
            return _pixels(kept, side)
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise ValueError(f"{path} is no readable image ({error})") from None


def _pixels(image: Image.Image, side: int | None) -> np.ndarray:
    image = image.resize((side, side), Image.Resampling.BILINEAR) if side else image
    array = np.asarray(image, np.uint8)
    return array[..., None] if array.ndim == 2 else array
