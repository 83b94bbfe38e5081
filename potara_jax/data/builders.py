"""Builders of data sets that tensorflow-datasets lacks, or needs TensorFlow for.

They download from the authors and store array records.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from potara_jax.data import glue

_CIFAR = "https://www.cs.toronto.edu/~kriz/{}"
_SIDE = 32

Records = Iterator[tuple[int, dict[str, Any]]]


class _Cifar(tfds.core.GeneratorBasedBuilder):
    """Krizhevsky 2009, from the binary version: labels, then red, green and blue."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent
    archive: str
    classes: int
    labels: int
    files: dict[str, tuple[str, ...]]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3)),
                "label": tfds.features.ClassLabel(num_classes=self.classes),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Records]:
        path = dl_manager.download(_CIFAR.format(self.archive))
        return {split: self._generate_examples(path, split) for split in self.files}

    def _generate_examples(self, path: Path, split: str) -> Records:
        with tarfile.open(os.fspath(path)) as archive:
            members = {Path(member.name).name: member for member in archive}
            names = self.files[split]
            data = b"".join(_content(archive, members[name]) for name in names)
        rows = np.frombuffer(data, np.uint8).reshape(-1, self.labels + 3 * _SIDE**2)
        for number, row in enumerate(rows):
            pixels = row[self.labels :].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
            label = int(row[self.labels - 1])  # after CIFAR-100's coarse one
            yield number, {"image": _png(pixels), "label": label}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def _png(pixels: np.ndarray) -> io.BytesIO:
    """The encoded image; tensorflow-datasets would encode arrays with TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
    file.seek(0)
    return file


class PotaraCifar100(_Cifar):
    """CIFAR-100 with its fine labels."""

    archive, classes, labels = "cifar-100-binary.tar.gz", 100, 2
    files = {"train": ("train.bin",), "test": ("test.bin",)}  # noqa: RUF012


class PotaraCifar10(_Cifar):
    """CIFAR-10."""

    archive, classes, labels = "cifar-10-binary.tar.gz", 10, 1
    files = {  # noqa: RUF012
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    }


class SocialIQa(tfds.core.GeneratorBasedBuilder):
    """Sap et al. 2019 (arXiv 1904.09728): questions about social situations."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent
    url = "https://storage.googleapis.com/ai2-mosaic/public/socialiqa/socialiqa-train-dev.zip"

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("context", "question", "answerA", "answerB", "answerC")
        features: dict[str, Any] = {name: tfds.features.Text() for name in names}
        features["label"] = tfds.features.ClassLabel(num_classes=3)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Records]:
        path = dl_manager.download(self.url)
        splits = {"train": "train", "validation": "dev"}
        return {
            name: self._generate_examples(path, part) for name, part in splits.items()
        }

    def _generate_examples(self, path: Path, split: str) -> Records:
        with zipfile.ZipFile(os.fspath(path)) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            lines = archive.read(names[f"{split}.jsonl"]).decode().strip().split("\n")
            labels = archive.read(names[f"{split}-labels.lst"]).decode().split()
        for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
            yield number, json.loads(line) | {"label": int(label) - 1}


class PotaraTrec(tfds.core.GeneratorBasedBuilder):
    """Li and Roth 2002: questions, and the coarse type of their answers."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent
    url = "https://cogcomp.seas.upenn.edu/Data/QA/QC/{}.label"

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=glue.TREC.classes),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Records]:
        names = {"train": "train_5500", "test": "TREC_10"}
        urls = {split: self.url.format(name) for split, name in names.items()}
        paths = dl_manager.download(urls)
        return {split: self._generate_examples(paths[split]) for split in names}

    def _generate_examples(self, path: Path) -> Records:
        for number, line in enumerate(Path(path).read_bytes().splitlines()):
            # One byte of the file is in no encoding.
            row = line.replace(b"\xf0", b" ").decode().strip()
            kinds, _, text = row.partition(" ")
            yield number, {"text": text, "label": kinds.partition(":")[0]}


BUILDERS = {
    "cifar100": PotaraCifar100,
    "cifar10": PotaraCifar10,
    "social_i_qa": SocialIQa,
    "trec": PotaraTrec,
}
