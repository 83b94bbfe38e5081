"""Builders of data sets that tensorflow-datasets cannot prepare without TensorFlow, or
does not have. Downloaded from their authors, stored as array records.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_CIFAR = "https://www.cs.toronto.edu/~kriz/{}"
_SIDE = 32


class _Cifar(tfds.core.GeneratorBasedBuilder):
    """Krizhevsky 2009, from its binary version: labels, then red, green and blue."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent
    archive: str
    classes: int
    labels: int
    files: dict[str, tuple[str, ...]]

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3)),
                "label": tfds.features.ClassLabel(num_classes=self.classes),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        path = dl_manager.download(_CIFAR.format(self.archive))
        return {split: self._generate_examples(path, split) for split in self.files}

    def _generate_examples(self, path, split):
        with tarfile.open(os.fspath(path)) as archive:
            members = {Path(member.name).name: member for member in archive}
            data = b"".join(
                archive.extractfile(members[name]).read() for name in self.files[split]
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, self.labels + 3 * _SIDE**2)
        for number, row in enumerate(rows):
            pixels = row[self.labels :].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
            label = int(row[self.labels - 1])  # CIFAR-100 has the coarse one before it
            yield number, {"image": _png(pixels), "label": label}


def _png(pixels: np.ndarray) -> io.BytesIO:
    """As bytes: from arrays, tensorflow-datasets encodes with TensorFlow."""
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(held, "png")
    held.seek(0)
    return held


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

    def _info(self):
        names = ("context", "question", "answerA", "answerB", "answerC")
        features = {name: tfds.features.Text() for name in names}
        features["label"] = tfds.features.ClassLabel(num_classes=3)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.download(self.url)
        splits = {"train": "train", "validation": "dev"}
        return {name: self._generate_examples(path, of) for name, of in splits.items()}

    def _generate_examples(self, path, split) -> Iterator:
        with zipfile.ZipFile(os.fspath(path)) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            lines = archive.read(names[f"{split}.jsonl"]).decode().strip().split("\n")
            labels = archive.read(names[f"{split}-labels.lst"]).decode().split()
        for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
            yield number, json.loads(line) | {"label": int(label) - 1}


OWN = {
    "cifar100": PotaraCifar100,
    "cifar10": PotaraCifar10,
    "social_i_qa": SocialIQa,
}
