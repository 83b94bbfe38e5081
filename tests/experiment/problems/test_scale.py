"""Bases that suit the device."""

import dataclasses

import pytest

from potara_jax.experiment.problems import scale
from potara_jax.experiments import images, text


def suited(monkeypatch, experiment, kind, speed, **changes):
    monkeypatch.setattr(scale, "speed", lambda: speed)
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return dict(scale.suited(experiment.set(values), kind))


@pytest.mark.parametrize(
    ("speed", "width", "depth", "steps"),
    [(3e10, 64, 3, 1450), (2.4e11, 96, 6, 1500), (2e13, 96, 6, 1500), (1, 64, 3, 200)],
)
def test_a_base_of_images_takes_some_three_minutes(
    monkeypatch, speed, width, depth, steps
):
    made = suited(monkeypatch, images.EXPERIMENT, scale.IMAGES, speed)
    assert made == {
        "source.width": width,
        "source.depth": depth,
        "pretraining.steps": steps,
    }
    operations = 6 * 12 * width**2 * depth * 65 * 64 * steps
    assert operations / speed < 200 or steps == 200


def test_what_the_user_sets_stays(monkeypatch):
    set_ = {"source__width": 128, "pretraining__steps": 7}
    made = suited(monkeypatch, text.EXPERIMENT, scale.TEXTS, 3e10, **set_)
    assert made == {"source.depth": 3}
    wider = suited(monkeypatch, text.EXPERIMENT, scale.TEXTS, 3e10, source__width=256)
    assert wider["pretraining.steps"] < 800


def test_a_checkpoint_needs_no_sizes(monkeypatch):
    made = suited(
        monkeypatch, images.EXPERIMENT, scale.IMAGES, 3e10, source__checkpoint="x"
    )
    assert made == {}


def test_experiments_are_resolved_with_sizes():
    source = dataclasses.replace(images.EXPERIMENT.source)
    resolved = images.EXPERIMENT.resolve(images.EXPERIMENT.replace(source=source))
    assert resolved.source.width in (64, 96) and resolved.pretraining.steps >= 200
    assert resolved.resolve(resolved) == resolved


def test_more_processors_are_faster(monkeypatch):
    monkeypatch.setattr(scale, "_processors", lambda: 2)
    two = scale.speed()
    monkeypatch.setattr(scale, "_processors", lambda: 16)
    assert scale.speed() == 8 * two
