"""Bases are pre-trained once, and kept by what determines them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data.federation import Batch
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import bases
from potara_jax.experiment.settings import Pretraining
from potara_jax.models import pretraining
from tests import small

EXAMPLES = Batch(jnp.arange(12.0).reshape(6, 2), jnp.arange(6))
SETTINGS = Pretraining(steps=4, batch_size=2, learning_rate=0.1)


@dataclasses.dataclass(frozen=True)
class Source:
    data: tuple[Path, ...] = ()
    checkpoint: str | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 2


def init(key):
    return {"layer": {"w": jax.random.normal(key, (2,))}}


def loss(params, batch):
    return (batch.inputs @ params["layer"]["w"] - batch.labels) ** 2


def pretrain(
    resources, *, config=None, settings=SETTINGS, examples=EXAMPLES, **options
):
    return bases.pretrained(
        config or Config(), init, loss, examples, settings, resources, **options
    )


def same(first, second) -> bool:
    return np.array_equal(first["layer"]["w"], second["layer"]["w"])


def test_the_cache_has_what_was_trained(tmp_path):
    lines = []
    resources = Resources(tmp_path, lines.append)
    first = pretrain(resources)
    assert lines[0] == "pre-training the base" and len(lines) == 5
    assert lines[-1].startswith("base: step 4 of 4, loss ")
    assert same(first, pretrain(resources)) and len(lines) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"config": Config(width=3)},
        {"settings": dataclasses.replace(SETTINGS, seed=1)},
        {"settings": dataclasses.replace(SETTINGS, learning_rate=0.2)},
        {"settings": dataclasses.replace(SETTINGS, batch_size=3)},
        {"settings": dataclasses.replace(SETTINGS, steps=5)},
        {"examples": EXAMPLES._replace(labels=EXAMPLES.labels + 1)},
    ],
)
def test_another_recipe_is_another_base(change, tmp_path):
    pretrain(Resources(tmp_path))
    pretrain(Resources(tmp_path), **change)
    assert len(list((tmp_path / "bases").iterdir())) == 2


def test_without_a_cache_nothing_is_kept_and_the_base_is_the_same(tmp_path):
    lines = []
    kept = pretrain(Resources(tmp_path))
    assert same(pretrain(Resources(None, lines.append)), kept)
    assert lines[0] == "pre-training the base"


def test_a_damaged_file_is_trained_again(tmp_path):
    first = pretrain(Resources(tmp_path))
    (path,) = (tmp_path / "bases").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    lines = []
    assert same(pretrain(Resources(tmp_path, lines.append)), first)
    assert "is damaged; training it again" in lines[0]


def test_an_interrupted_base_goes_on_from_its_last_step(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "_SECONDS_BETWEEN_SAVES", 0.0)
    settings, lines = dataclasses.replace(SETTINGS, steps=30), []

    def stop(line):
        lines.append(line)
        if line.startswith("base: step 20"):
            raise KeyboardInterrupt

    whole = pretrain(Resources(None), settings=settings)
    with pytest.raises(KeyboardInterrupt):
        pretrain(Resources(tmp_path, stop), settings=settings)
    (part,) = (tmp_path / "bases").iterdir()
    assert part.name.endswith(".part.npz")
    resumed = []
    base = pretrain(Resources(tmp_path, resumed.append), settings=settings)
    assert same(base, whole)
    first = next(line for line in resumed if "base: step" in line)
    assert first.startswith("base: step 20 ")
    (kept,) = (tmp_path / "bases").iterdir()
    assert not kept.name.endswith(".part.npz")


@pytest.mark.parametrize("damage", [lambda x: x[:50], lambda x: b""])
def test_a_damaged_part_is_trained_from_the_beginning(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(pretraining, "_SECONDS_BETWEEN_SAVES", 0.0)
    whole = pretrain(Resources(None))

    def stop(line):
        if "step 3" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(Resources(tmp_path, stop))
    (part,) = (tmp_path / "bases").iterdir()
    part.write_bytes(damage(part.read_bytes()))
    lines = []
    assert same(pretrain(Resources(tmp_path, lines.append)), whole)
    assert "is damaged; training the base from its beginning" in lines[1]


def test_the_time_that_the_steps_take_is_logged():
    lines = []
    settings = dataclasses.replace(SETTINGS, steps=20)
    pretrain(Resources(None, lines.append), settings=settings)
    (pace,) = (line for line in lines if "a step takes" in line)
    assert pace.endswith("from here")
    assert [bases.duration(x) for x in (40.2, 720, 3600 * 3.5)] == [
        "40 s",
        "12 minutes",
        "3.5 hours",
    ]


def test_without_a_report_the_steps_are_silent(tmp_path):
    lines = []
    pretrain(Resources(None, lines.append), report=False)
    assert lines == ["pre-training the base"]


# --- Settings of a source ------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "depth", "reason"),
    [
        (33, 1, "source.width is 33: it must be a multiple of 32"),
        (0, 1, "source.width is 0: it must be 1 or more"),
        (32, 0, "source.depth is 0: it must be 1 or more"),
    ],
)
def test_sizes_that_a_base_cannot_have_are_refused(width, depth, reason):
    bases.check_sizes(SimpleNamespace(width=64, depth=1))
    with pytest.raises(ValueError, match=reason):
        bases.check_sizes(SimpleNamespace(width=width, depth=depth))


def test_the_users_files_are_the_data_and_a_checkpoint_in_a_folder(tmp_path):
    small.vision_model(tmp_path / "vit")
    data, folder = (Path("a"), Path("b")), tmp_path / "vit"

    def files(**source):
        experiment = Experiment("", lambda *_: None, source=Source(**source))
        return bases.user_files(experiment)

    assert files(data=data, checkpoint=None) == [*data]
    assert files(data=data, checkpoint="owner/model") == [*data]
    assert folder / "config.json" in files(checkpoint=str(folder))
    assert files(data=data, checkpoint=str(folder))[:2] == [*data]
