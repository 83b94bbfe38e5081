"""Labelled images from the user's files.

    a.npz        `images` and `labels`, or `x` and `y`, and optionally `names`; or
                 `x_train`, `y_train`, `x_test`, `y_test`, and the like
    a folder     one sub-folder of image files per class, or `train` and `test` with
                 such sub-folders, or .npz files

Dimension letters: `N` images, `H` `W` sides, `C` colours, `K` classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from potara_jax.data.labels import by_number

# Formats that Pillow names but cannot read without further software.
_UNREADABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
# Names of parts, in files and folders; only tests may use the last.
_PARTS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_TESTS = _PARTS[-2:]
_WITH_ALPHA = 4  # colours, of which the last is how opaque a pixel is

Log = Callable[[str], None]


class Images(NamedTuple):
    """Labelled images.

    Attributes:
      images: uint8, `[N, H, W, C]`.
      labels: int32, `[N]`, below `K`.
      names: of the `K` classes.
      testing: `[N]`, true for images that only tests may use, if any are.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    testing: np.ndarray | None = None

    def select(self, chosen: np.ndarray) -> Images:
        """Some of the images, with all names."""
        testing = None if self.testing is None else self.testing[chosen]
        return Images(self.images[chosen], self.labels[chosen], self.names, testing)


def silent(line: str) -> None:
    """Discard a line for the user."""


def read(
    paths: Sequence[str | os.PathLike[str]],
    *,
    side: int | None = None,
    log: Log = silent,
) -> Images:
    """Read the images of several files or folders together.

    Args:
      paths: .npz files, or folders of images.
      side: pixels of a side, to which all images are resized. Default: as they are.
      log: receives a line on what was converted.

    Returns:
      The images, with the names of the classes that occur.

    Raises:
      ValueError: a file cannot be used; says which one and why.
    """
    return join([_read_one(Path(path), side, log) for path in paths], paths)


def join(parts: Sequence[Images], sources: Sequence[object]) -> Images:
    """Join the images of several sources; classes of the same name become one.

    Args:
      parts: the images of each source.
      sources: what to call each source in a message.

    Raises:
      ValueError: images differ in size; the message names the sources.
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
    testing = None
    if any(part.testing is not None for part in parts):
        masks = [
            np.zeros(len(p.labels), bool) if p.testing is None else p.testing
            for p in parts
        ]
        testing = np.concatenate(masks)
    return Images(np.concatenate(pixels), np.concatenate(labels), tuple(names), testing)


def without_duplicates(images: Images, log: Log) -> Images:
    """Keep one of every duplicate; drop images whose copies disagree on the label.

    Of copies that are tested and trained on, one is tested on.

    Args:
      images: of all splits.
      log: receives a line for the user if there are any duplicates.
    """
    copies: dict[int, list[int]] = {}
    for number, same in enumerate(identities(images.images).tolist()):
        copies.setdefault(same, []).append(number)
    agree = [g for g in copies.values() if len(set(images.labels[g].tolist())) == 1]
    tested = images.testing
    kept = np.sort(
        [g[0] if tested is None else max(g, key=tested.__getitem__) for g in agree]
    ).astype(int)
    unclear = len(images.labels) - sum(map(len, agree))
    if repeated := len(images.labels) - len(kept):
        log(f"{repeated} images are duplicates: one of each is kept")
    if unclear:
        log(f"{unclear} of them have copies with another label: none of those is kept")
    return images.select(kept)


def identities(images: np.ndarray) -> np.ndarray:
    """Numbers `[N]` that are equal for equal images."""
    known: dict[bytes, int] = {}
    digests = (hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in images)
    return np.array([known.setdefault(digest, len(known)) for digest in digests], int)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _read_one(path: Path, side: int | None, log: Log) -> Images:
    if path.is_dir():
        return _read_folder(path, side, log)
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"{path} is neither an .npz file nor a folder of classes")
    return _read_arrays(path, side, log)


# --- Arrays --------------------------------------------------------------------------

_IMAGES = ("images", "x", "data", "image", "imgs")
_LABELS = ("labels", "y", "label", "targets", "target")
_NAMES = ("names", "class_names", "label_names", "classes")


def _read_arrays(path: Path, side: int | None, log: Log) -> Images:
    with _opened(path) as file:
        keys = {name.lower(): name for name in file.files}
        names = next((keys[name] for name in _NAMES if name in keys), None)
        named = None if names is None else _array(path, file, names)
        parts = [
            _of_arrays(
                path,
                _array(path, file, images),
                _array(path, file, labels),
                named,
                side,
                log,
            )
            for images, labels in _pairs(path, keys).values()
        ]
    testing = [name in _TESTS for name in _pairs(path, keys)]
    return _with_tests(path, parts, testing, log)


def _with_tests(
    path: Path, parts: Sequence[Images], testing: Sequence[bool], log: Log
) -> Images:
    """Parts as one, of which some are for tests only."""
    if all(testing) or not any(testing):
        return join(parts, [path] * len(parts))
    marked = [
        part._replace(testing=np.full(len(part.labels), tested))
        for part, tested in zip(parts, testing, strict=True)
    ]
    joined = join(marked, [path] * len(parts))
    number = sum(len(p.labels) for p, t in zip(parts, testing, strict=True) if t)
    log(f"{path}: its {number} test images are used for tests only, and no others")
    return joined


def _pairs(path: Path, keys: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The names of images and labels, by the part that they are of."""
    found = {}
    for part in ("", *_PARTS):
        kinds = [
            [keys[n] for name in names for n in _spelled(name, part) if n in keys]
            for names in (_IMAGES, _LABELS)
        ]
        if all(kinds):
            found[part] = kinds[0][0], kinds[1][0]
    if not found:
        content = ", ".join(keys.values()) or "nothing"
        raise ValueError(
            f"{path} holds {content}: it needs images and labels, or x and y, or "
            "x_train, y_train, x_test and y_test"
        )
    return {"": found[""]} if "" in found else found


def _spelled(name: str, part: str) -> tuple[str, ...]:
    return (f"{name}_{part}", f"{part}_{name}") if part else (name,)


def _of_arrays(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    named: np.ndarray | None,
    side: int | None,
    log: Log,
) -> Images:
    pixels = _as_pixels(path, images, log)
    numbers, texts = _as_labels(path, labels, len(pixels), log)
    if named is not None and texts is None:
        names = _names(path, named, numbers)
    else:
        used, numbers = np.unique(numbers, return_inverse=True)
        names = tuple(texts[n] if texts else str(n) for n in used)
    if side and pixels.shape[1:3] != (side, side):
        pixels = np.stack([_resize_array(image, side) for image in pixels])
    return Images(pixels, numbers.reshape(-1).astype(np.int32), names)


def of_arrays(
    path: Path, images: np.ndarray, labels: np.ndarray, *, side: int | None = None
) -> Images:
    """Images from arrays, with classes named by their labels.

    Args:
      path: where they come from, for error messages.
      images: as in a file.
      labels: as in a file.
      side: see `read`.

    Raises:
      ValueError: as `read` does.
    """
    return _of_arrays(path, images, labels, None, side, silent)


def _opened(path: Path) -> Any:
    try:
        file = np.load(path)
        if not hasattr(file, "files"):
            raise ValueError("it is a single array")
        return file
    except Exception as error:  # whatever a damaged file makes NumPy raise
        raise ValueError(f"{path} is damaged or no .npz file ({error})") from None


def _array(path: Path, file: Any, name: str) -> np.ndarray:
    """One array of a file."""
    try:
        array = file[name]
    except Exception as error:  # whatever a damaged file makes NumPy raise
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: {name} holds Python objects (a pickle), which are not read, "
                "as they could run code; save it as an array of numbers or texts"
            ) from None
        raise ValueError(f"{path} is damaged or no .npz file ({error})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {name} is no array; write it with np.savez")
    return array


def _as_pixels(path: Path, images: np.ndarray, log: Log) -> np.ndarray:
    """Images as uint8 `[N, H, W, C]`, with a line on what was converted."""
    given = f"{images.dtype} {list(images.shape)}"
    pixels = _to_bytes(images)
    if pixels is None or images.ndim not in (2, 3, 4) or not images.size:
        raise ValueError(
            f"{path}: images are {given}: they must be uint8 [N, H, W, C], or floats "
            "from 0 to 1"
        )
    if images.ndim == 2:
        pixels = _squares(path, pixels)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    _, first, _, last = pixels.shape
    if first in (1, 3, 4) and last > 4:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    if pixels.shape[-1] == _WITH_ALPHA:
        pixels = np.ascontiguousarray(pixels[..., :3])
    *_, colours = pixels.shape
    if colours not in (1, 3):
        raise ValueError(
            f"{path}: images are {given}: they must have 1 or 3 colours, not {colours}"
        )
    as_they_are = images.shape, (*images.shape, 1)
    if images.dtype != np.uint8 or pixels.shape not in as_they_are:
        log(f"{path}: images are {given}, read as uint8 {list(pixels.shape)}")
    return pixels


def _squares(path: Path, rows: np.ndarray) -> np.ndarray:
    """Rows of pixels `[N, H W]` as grey images `[N, H, W]` of equal sides."""
    number = rows.shape[1]
    side = round(number**0.5)
    if side**2 != number:
        raise ValueError(
            f"{path}: rows of {number} pixels are no squares; reshape them to "
            "[N, H, W, C]"
        )
    return rows.reshape(-1, side, side)


def _to_bytes(images: np.ndarray) -> np.ndarray | None:
    """Numbers as uint8: bytes as they are, floats from 0 or -1 to 1 scaled to 255."""
    if images.dtype == np.uint8 or not images.size or images.dtype.kind not in "biuf":
        return images if images.dtype == np.uint8 else None
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind == "b":
        return images.astype(np.uint8) * 255
    whole = images.dtype.kind in "iu" or bool((images == np.round(images)).all())
    if whole and low >= 0 and 1 < high <= 255:
        return images.astype(np.uint8)
    if low >= -1 and high <= 1:
        unit = images if low >= 0 else (images + 1) / 2
        return np.round(255 * unit).astype(np.uint8)
    return None


def _as_labels(
    path: Path, labels: np.ndarray, number: int, log: Log
) -> tuple[np.ndarray, list[str] | None]:
    """Labels as whole numbers `[N]`, and their texts if they are texts."""
    given, kind = f"{labels.dtype} {list(labels.shape)}", labels.dtype.kind
    column = labels.ndim == 2 and labels.shape[1] == 1
    one_hot = labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels)
    flat = labels.reshape(-1) if column else labels
    flat = flat.argmax(1) if one_hot else flat
    texts = None
    if kind in "US" and flat.ndim == 1:
        used, flat = np.unique(flat, return_inverse=True)
        texts = [x.decode() if isinstance(x, bytes) else str(x) for x in used.tolist()]
    elif kind == "f" and flat.ndim == 1 and (flat == np.round(flat)).all():
        flat = flat.astype(np.int64)
    flat = flat.astype(np.int64) if flat.dtype.kind == "b" else flat
    if flat.shape != (number,) or flat.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels are {given}: they must be {number} integers")
    if flat.min() < 0:
        raise ValueError(f"{path}: a label is {flat.min()}: it must be 0 or more")
    if column or one_hot:
        log(f"{path}: labels are {given}, read as the classes of {number} images")
    return flat, texts


def _is_one_hot(labels: np.ndarray) -> bool:
    if labels.dtype.kind not in "biuf":
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())


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


# --- Folders -------------------------------------------------------------------------


def _read_folder(path: Path, side: int | None, log: Log) -> Images:
    content = visible(path)
    folders = [each for each in content if each.is_dir()]
    arrays = [each for each in content if each.suffix == ".npz"]
    if arrays and not folders:
        return join([_read_arrays(each, side, log) for each in arrays], arrays)
    if folders and all(_is_part(folder) for folder in folders):
        parts = [_read_classes(folder, side) for folder in folders]
        testing = [folder.name.lower() in _TESTS for folder in folders]
        return _with_tests(path, parts, testing, log)
    return _read_classes(path, side)


def _is_part(folder: Path) -> bool:
    """Whether a folder is named as a part, and holds folders of classes."""
    known = folder.name.lower() in _PARTS
    return known and any(each.is_dir() for each in visible(folder))


def _read_classes(path: Path, side: int | None) -> Images:
    classes = [p for p in visible(path) if p.is_dir()]
    known = suffixes()
    files = [(n, f) for n, folder in enumerate(classes) for f in visible(folder)]
    files = [(n, f) for n, f in files if f.suffix.lower() in known]
    empty = set(range(len(classes))) - {number for number, _ in files}
    if empty or not classes:
        raise ValueError(_without_images(classes[min(empty)] if empty else path))
    images = _in_colour([_read_image(file, side) for _, file in files])
    for (_, file), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            sizes = f"{file} is {_size(image.shape)}, others {_size(images[0].shape)}"
            raise ValueError(f"{sizes}; set side, to resize them")
    labels = np.array([number for number, _ in files], np.int32)
    return Images(np.stack(images), labels, tuple(folder.name for folder in classes))


def _without_images(folder: Path) -> str:
    """What a folder that holds no image holds, and what it should."""
    content = visible(folder)
    if any(each.suffix.lower() in suffixes() for each in content):
        return (
            f"{folder} holds images, but no sub-folders: it needs one per class, with "
            "its images"
        )
    named = ", ".join(each.name for each in content[:3]) or "nothing"
    more = " and more" if len(content) > 3 else ""
    return (
        f"{folder} holds no image, but {named}{more}: a folder needs sub-folders of "
        "images, one per class"
    )


def suffixes() -> set[str]:
    """The ends of names of files that Pillow reads as images, in lower case."""
    kinds = Image.registered_extensions().items()
    readable = {*Image.OPEN} - _UNREADABLE
    return {end for end, kind in kinds if kind in readable}


def visible(folder: Path) -> list[Path]:
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
