"""What every experiment can be told, with its checks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Literal

from potara_jax.data.dealing import SHARDS, TASKS
from potara_jax.federated.registry import load_all

SEEDS = 2**63
Precision = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Federated and local LoRA, merged by Potara, on one federation a cell.

    A cell is one heterogeneity with one seed.
    """

    load: tuple[Path, ...] = ()
    """Python files that register algorithms of your own. Default: none."""
    out: Path = Path("runs/run")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    rerun: bool = False
    """Throw away what the run folder holds, and start anew."""
    cache: Path = Path("~/.cache/potara_jax")
    """Where pre-trained bases and compiled programs are kept between runs."""
    profile: bool = False
    """Trace a few rounds of every phase into the run folder, for TensorBoard or
    Perfetto."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Every seed draws the splits, the clients, the initial factors and the batches."""
    heterogeneity: tuple[str, ...] = ("0.1", "0.5")
    """Dirichlet concentrations of the clients' classes; `shards2`: two classes each;
    `tasks`: groups of clients with different image transformations and all classes
    alike."""
    clients: int = 20
    """Number of clients."""

    rank: int = 8
    """Rank of the LoRA factors."""
    alpha: float = 16.0
    """LoRA's alpha: a delta is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("query", "value")
    """Modules to adapt: regular expressions for the end of a module's path."""
    precision: Precision = "float32"
    """Of the frozen base; activations are in bfloat16 with the last two."""
    remat: bool = False
    """Compute activations again for the gradient: less memory, a third more time."""
    train_head: bool = False
    """Train the head too; it then travels and merges with the adapter."""

    federated_rounds: int = 40
    """Rounds of FedIT."""
    longer_rounds: int = 0
    """Rounds to which a federated model goes on, as a baseline that is not merged.
    Default: none."""
    local_rounds: int = 20
    """Rounds that each client trains alone: the local phase, and fine-tuning."""
    local_steps: int = 5
    """Optimiser steps of a client in a round."""
    batch_size: int = 8
    """Examples of a step."""
    learning_rate: float = 5e-3
    """AdamW's learning rate; its state is fresh in every round."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    federated: str = "fedit"
    """The algorithm of the federated model; any whose model is one adapter."""
    local_start: Literal["shared", "independent", "federated"] = "shared"
    """Where local training starts: the factors that the federation starts from, factors
    of each client's own, or the federated adapter."""

    cohort: str = "1.0"
    """Clients of a federated round: their share, as 0.5 or 1.0, or their number."""
    weighted_cohorts: bool = False
    """Draw a cohort's clients by their numbers of examples, not uniformly."""
    dropout: float = 0.0
    """Probability that a client is lost after having trained in a round."""
    stragglers: float = 0.0
    """Probability that a client finishes only a part of a round's steps."""
    newcomers: float = 0.0
    """Share of the clients that join after the federated rounds."""
    compression: Literal["none", "bfloat16", "int8", "top_k"] = "none"
    """How clients compress what they send."""
    top_k_share: float = 0.1
    """Share of an array's entries that top_k sends."""
    privacy_clip: float | None = None
    """Client-level differential privacy: the norm that a client's change is clipped to,
    in every round."""
    privacy_noise: float = 1.0
    """Noise of the sum of a round's changes, over the clip."""
    privacy_delta: float = 1e-5
    """The delta at which epsilon is reported."""

    samples: int = 30
    """Examples of a client that a weight is measured on, training or held-out."""
    curvature: Literal["exact", "empirical", "sampled"] = "exact"
    """Which Fisher: over all classes, of the data's labels, of labels drawn."""
    curvature_on: Literal["train", "heldout"] = "train"
    """Which examples the curvature is measured on."""
    damping: Literal["relative", "laplace", "quantile", "harmonic"] = "relative"
    """How Fisher information becomes a posterior variance."""
    damping_value: float = 0.3
    """Relative or harmonic: share of the mean Fisher; laplace: the prior precision;
    quantile: the quantile."""
    grid_points: int = 11
    """Merge weights that grid search and the oracles try."""

    merges: tuple[str, ...] = ()
    """Rows of the table that merge, by name; potara factor, potara core and
    hermite_bayes are always there. Default: all."""

    chunk: int | Literal["auto"] = "auto"
    """Clients of a round that are trained at once; auto: as many as fit the memory."""

    more_heterogeneity: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise `ValueError` with the setting, its value and what is allowed."""
        for name in _POSITIVE:
            value = getattr(self, name)
            good = value is None or value == "auto" or 0 < value < math.inf
            _require(good, self, name, "must be above 0, and finite")
        known = load_all()
        allowed = f"must be one of {', '.join(known)}"
        _require(self.federated in known, self, "federated", allowed)
        for name, (good, allowed) in _ALLOWED.items():
            _require(good(getattr(self, name)), self, name, allowed)
        alone = self.privacy_clip is None or not self.weighted_cohorts
        _require(alone, self, "weighted_cohorts", "has no account of --privacy-clip")
        for name in ("seeds", "heterogeneity", "targets"):
            values = getattr(self, name)
            _require(values, self, name, "must name at least one")
            _require(len(set(values)) == len(values), self, name, "names one twice")
        for seed in self.seeds:
            _require(0 <= seed < SEEDS, self, "seeds", f"must be in [0, {SEEDS})")
        for value in self.heterogeneity:
            shards = value.removeprefix(SHARDS)
            good = value == TASKS or _positive_number(value)
            held = int(shards) if shards.isdecimal() and len(shards) < 7 else 0
            good = good or (shards != value and held > 0)
            good = good or value in self.more_heterogeneity
            allowed = f"must be numbers above 0, {SHARDS}2 or the like, or '{TASKS}'"
            _require(good, self, "heterogeneity", allowed)


def check_algorithms(settings) -> None:
    """Raise `ValueError` where one of `settings.algorithms` is not registered."""
    good = set(settings.algorithms) <= set(load_all())
    _require(good, settings, "algorithms", f"must be of {', '.join(load_all())}")


def check_least(settings, least: int, *names: str) -> None:
    """Raise `ValueError` where one of the settings is below `least`; None is not."""
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value >= least, settings, name, f"must be >= {least}")


def check_most(settings, most: int, *names: str) -> None:
    """Raise `ValueError` where one of the settings is above `most`; None is not."""
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value <= most, settings, name, f"must be <= {most}")


def check_apart(settings) -> None:
    """Raise `ValueError` where the run folder lies among the user's own data."""
    out = settings.out.resolve()
    for path in settings.data:
        inside = path.is_dir() and out.is_relative_to(path.resolve())
        _require(not inside, settings, "out", f"must not be inside --data {path}")


def check_base(settings) -> None:
    """Raise `ValueError` where the base cannot be pre-trained so."""
    check_least(settings, 0, "base_steps")
    good = 0 <= settings.base_seed < SEEDS
    _require(good, settings, "base_seed", f"must be in [0, {SEEDS})")


def _is_cohort(text: str) -> bool:
    if text.isdecimal():
        return int(text) > 0
    return _positive_number(text) and float(text) <= 1


def _positive_number(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


_POSITIVE = (
    "clients",
    "rank",
    "alpha",
    "federated_rounds",
    "local_rounds",
    "local_steps",
    "batch_size",
    "learning_rate",
    "samples",
    "damping_value",
    "privacy_clip",
    "chunk",
)
_UP_TO_ONE = (lambda x: 0 < x <= 1, "must be in (0, 1]")
_BELOW_ONE = (lambda x: 0 <= x < 1, "must be in [0, 1)")
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "must be 0 or more, and finite")
_ALLOWED = {
    "cohort": (_is_cohort, "must be a share, as 0.5 or 1.0, or a number, as 10"),
    "dropout": _BELOW_ONE,
    "stragglers": _BELOW_ONE,
    "newcomers": _BELOW_ONE,
    "top_k_share": _UP_TO_ONE,
    "privacy_delta": (lambda x: 0 < x < 1, "must be in (0, 1)"),
    "privacy_noise": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "longer_rounds": _NOT_NEGATIVE,
    "grid_points": (lambda x: x > 1, "must be 2 or more"),
}
_NOT_OF_THE_RESULT = ("out", "rerun", "cache", "profile")


def _require(good, settings, name, allowed):
    if not good:
        option = "--" + name.replace("_", "-")
        raise ValueError(f"{option} is {_show(getattr(settings, name))}: it {allowed}")


def _show(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def resolved(settings: Settings) -> dict:
    """All settings that determine the results, as JSON values."""
    values = dataclasses.asdict(settings)
    kept = {k: v for k, v in values.items() if k not in _NOT_OF_THE_RESULT}
    return {name: _json(value) for name, value in kept.items()}


def _json(value):
    if isinstance(value, tuple):
        return [_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value
