"""Sizes of a base, and steps of its pre-training, that suit the device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from potara_jax.experiment.experiment import Experiment

# Floating-point operations a second: of a processor's core, and of an accelerator.
_CORE, _ACCELERATOR = 15e9, 20e12
_SECONDS = 180  # of pre-training
_FEWEST = 200  # steps
_ROUND = 50


class Scale(NamedTuple):
    """What bases of a kind of data have by default.

    Attributes:
      small: width and depth on a slow device.
      large: width and depth on a fast device.
      tokens: of an example, about.
      steps: of pre-training, at most.
      enough: the operations a second from which a device is fast.
    """

    small: tuple[int, int]
    large: tuple[int, int]
    tokens: int
    steps: int
    enough: float = 1e11


IMAGES = Scale(small=(64, 3), large=(96, 6), tokens=65, steps=1500)
TEXTS = Scale(small=(96, 3), large=(128, 4), tokens=64, steps=800)


def speed() -> float:
    """Floating-point operations a second of the devices, about."""
    if jax.default_backend() == "cpu":
        return _CORE * _processors()
    return _ACCELERATOR * jax.device_count()


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def suited(experiment: Experiment, scale: Scale) -> Mapping[str, Any]:
    """The settings of a base that the experiment leaves open, as `set` takes them.

    Pre-training takes up to three minutes, at about 6 operations a parameter, token and
    example of a step.

    Args:
      experiment: its source has `width` and `depth`, which may be None; its
        pre-training's `steps` may be 0.
      scale: of its kind of data.

    Returns:
      The settings by their dotted names; none for a checkpoint.
    """
    source, pretraining = experiment.source, experiment.pretraining
    if source.checkpoint or pretraining is None:
        return {}
    fast = speed()
    default = scale.large if fast >= scale.enough else scale.small
    width, depth = source.width or default[0], source.depth or default[1]
    batch = pretraining.batch_size or 1
    operations = 6 * 12 * width**2 * depth * scale.tokens * batch
    steps = int(_SECONDS * fast / operations) // _ROUND * _ROUND
    wanted = max(_FEWEST, min(steps, scale.steps))
    changes = {} if pretraining.steps else {"pretraining.steps": wanted}
    if source.width is None:
        changes["source.width"] = width
    if source.depth is None:
        changes["source.depth"] = depth
    return changes
