"""The base of a problem: pre-trained here, or a checkpoint's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.layers import Site
from potara_jax.adapters.lora import Params
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.settings import Lora, Pretraining
from potara_jax.models import weights
from potara_jax.models.pretraining import Keeper, Listener, pretrain
from potara_jax.runs.bases import Part, cached_base

HEAD_WIDTH = 32  # of the attention heads of a base that is pre-trained here


def pretrained(
    config: Any,
    init: Callable[[jax.Array], Params],
    loss: Callable[[Params, Any], jax.Array],
    examples: Any,
    settings: Pretraining,
    resources: Resources,
    *,
    report: bool = True,
) -> Params:
    """Pre-train a base, or read it from the cache.

    Args:
      config: the model's sizes, a dataclass; with the settings and the examples it
        determines the base.
      init: `key -> params`.
      loss: `(params, batch) -> [B]`.
      examples: a pytree of arrays with examples on the first axis.
      settings: of the pre-training.
      resources: the cache, and the log.
      report: whether to log the loss from time to time. Otherwise all steps are one
        program.

    Returns:
      The parameters.
    """
    recipe = {"model": dataclasses.asdict(config), **dataclasses.asdict(settings)}

    def train(part: Part | None) -> Params:
        start, key = jax.random.split(jax.random.key(settings.seed))
        return pretrain(
            lambda params, batch: loss(params, batch).mean(),
            jax.jit(init)(start),
            jax.tree.map(jnp.asarray, examples),
            key,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            listener=_listener(settings.steps, resources.log) if report else None,
            keeper=Keeper(part.load, part.save) if part else None,
        )[0]

    return cached_base(resources.cache, recipe, examples, train, resources.log)


def _listener(steps: int, log: Callable[[str], None]) -> Listener:
    """Logs the loss from time to time, and how long the steps will take."""

    def on_step(done: int, value: float) -> None:
        log(f"base: step {done} of {steps}, loss {value:.3f}")

    def on_pace(done: int, seconds: float) -> None:
        left = duration((steps - done) * seconds)
        log(f"base: a step takes {seconds:.2g} s, so that all take {left} from here")

    return Listener(on_step, on_pace)


def duration(seconds: float) -> str:
    """A time in words: `40 s`, `12 minutes` or `3.5 hours`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def settings_of(experiment: Experiment) -> Pretraining:
    """How an experiment pre-trains its base, by default if it does not say."""
    return experiment.pretraining or Pretraining()


def activation_dtype(precision: str) -> str:
    """The dtype of activations for a base of a given precision."""
    return "float32" if precision == "float32" else "bfloat16"


def first_adapted(settings: Lora, depth: int) -> int:
    """The first layer, of `depth`, in which modules may be adapted.

    Args:
      settings: which layers are adapted.
      depth: the number of layers.

    Raises:
      ValueError: more of the last layers are asked for.
    """
    last = settings.last_layers
    good = last is None or last <= depth
    require_that(good, "lora.last_layers", last, f"{depth} or less")
    return 0 if last is None else depth - last


def in_last_layers(
    sites: Mapping[str, Site], settings: Lora, frozen: Callable[[list[str]], int]
) -> dict[str, Site]:
    """The sites in or after the first layer that may be adapted.

    Args:
      sites: all that the targets name.
      settings: its `last_layers`.
      frozen: the number of layers before a list of paths; of none, of all layers.

    Raises:
      ValueError: the model has fewer layers, or no target is in the last ones.
    """
    first = first_adapted(settings, frozen([]))
    kept = {path: site for path, site in sites.items() if frozen([path]) >= first}
    expected = f"modules of the last {settings.last_layers} layers"
    require_that(bool(kept), "lora.targets", settings.targets, expected)
    return kept


# --- Settings of a source ------------------------------------------------------------


def check_sizes(source: Any) -> None:
    """Raise `ValueError` for a `width` or a `depth` that a base cannot have."""
    require_at_least(source, "source", 1, "width", "depth")
    good = source.width is None or source.width % HEAD_WIDTH == 0
    require_that(good, "source.width", source.width, f"a multiple of {HEAD_WIDTH}")


def sizes_of(source: Any) -> tuple[int, int]:
    """A source's `width` and `depth`, which an experiment's `resolve` has filled in."""
    width, depth = source.width, source.depth
    assert width is not None and depth is not None, "the experiment is not resolved"
    return width, depth


def check_upstream(source: Any) -> None:
    """Raise `ValueError` for an invalid share `upstream` of the base."""
    share, checkpoint = source.upstream, source.checkpoint
    require_that(0 <= share < 1, "source.upstream", share, "in [0, 1)")
    expected = "above 0: a base needs examples, or source.checkpoint"
    require_that(bool(share or checkpoint), "source.upstream", share, expected)


def user_files(experiment: Experiment) -> list[Path]:
    """The user's files whose content determines an experiment's results.

    They are the `data` of its source, if it has any, and then the files of its
    `checkpoint`, if that is a folder.
    """
    source = experiment.source
    data, checkpoint = getattr(source, "data", ()), source.checkpoint
    return [*data, *(weights.files_of(checkpoint) if checkpoint else [])]
