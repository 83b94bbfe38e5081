"""The groups of settings that an experiment is composed of.

Each is a frozen dataclass. It checks the types of its fields when it is made, and their
values when it is used. A setting is always named by its group and its field:
`lora.rank` in an error, in `config.json`, and as an option of the command line,
`--lora.rank`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal

from potara_jax.data.dealing import SHARDS, TASKS
from potara_jax.experiment.checks import (
    require_at_least,
    require_distinct,
    require_not_negative,
    require_one_of,
    require_positive,
    require_that,
)
from potara_jax.experiment.types import check_types
from potara_jax.federated.registry import algorithms

SEEDS = 2**63
NATURAL = "natural"
AUTO: Final = "auto"
Precision = Literal["float32", "bfloat16", "int8"]
Curvature = Literal["exact", "empirical", "sampled", "auto"]


@dataclasses.dataclass(frozen=True)
class Cells:
    """The federations: one cell for each heterogeneity and seed."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Every seed draws the splits, the clients, the initial factors and the batches."""
    heterogeneity: tuple[str, ...] = ("0.1", "0.5")
    """How much the clients differ. A number: Dirichlet concentration of a client's
    classes or tasks; `shards2`: two classes or tasks each; `tasks`: one task each, or
    of images all classes, and a transformation each; `natural`: the clients that the
    data define."""
    clients: int = 20
    """Number of clients."""
    apart_from: tuple[int, ...] = ()
    """Seeds whose test examples are neither trained nor measured on. A search of step
    sizes stays apart from the tables' seeds."""

    def __post_init__(self) -> None:
        check_types(self, "cells.")

    @property
    def keys(self) -> list[tuple[str, int]]:
        """Every heterogeneity with every seed."""
        return [(name, seed) for name in self.heterogeneity for seed in self.seeds]

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_at_least(self, "cells", 1, "clients")
        require_distinct(self, "cells", "seeds", "heterogeneity")
        for seed in self.seeds:
            require_that(0 <= seed < SEEDS, "cells.seeds", seed, f"in [0, {SEEDS})")
        both = {*self.seeds} & {*self.apart_from}
        expected = "other than cells.seeds"
        require_that(not both, "cells.apart_from", self.apart_from, expected)
        expected = f"numbers above 0, {SHARDS}2 or the like, '{TASKS}' or '{NATURAL}'"
        for value in self.heterogeneity:
            good = _is_heterogeneity(value)
            require_that(good, "cells.heterogeneity", value, expected)


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 8
    """Rank of the factors."""
    alpha: float = 16.0
    """A delta is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("query", "value")
    """Modules to adapt: regular expressions that match the end of a module's path."""
    last_layers: int | None = None
    """Adapt modules of the last layers only: the number of these. Default: of all."""
    whole: tuple[str, ...] = ()
    """Modules that are trained whole, such as a new `head`. They are sent and merged
    with the factors."""

    def __post_init__(self) -> None:
        check_types(self, "lora.")

    @property
    def scale(self) -> float:
        """What a delta is scaled by."""
        return self.alpha / self.rank

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_positive(self, "lora", "rank", "alpha")
        require_at_least(self, "lora", 1, "last_layers")
        require_distinct(self, "lora", "targets")


@dataclasses.dataclass(frozen=True)
class Training:
    """A client's training in a round, by AdamW with a fresh state."""

    steps: int = 5
    """Optimiser steps per client and round."""
    batch_size: int = 8
    """Examples of a step."""
    learning_rate: float = 5e-3
    """AdamW's learning rate."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""

    def __post_init__(self) -> None:
        check_types(self, "training.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_positive(self, "training", "steps", "batch_size", "learning_rate")
        require_not_negative(self, "training", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Federated:
    """The federated model."""

    algorithm: str = "fedit"
    """One of `potara list algorithms` whose model is a single adapter."""
    rounds: int = 40
    """Rounds of the federation."""
    ranks: tuple[int, ...] = ()
    """Ranks that are dealt to the clients in turn, such as 2 4 8, for algorithms whose
    clients may differ in rank: flexlora, flora, hetlora. Default: lora.rank for all."""
    longer_rounds: int = 0
    """Total rounds of a federated model that is trained longer, as a baseline that is
    not merged; 0: no such baseline."""

    def __post_init__(self) -> None:
        check_types(self, "federated.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_positive(self, "federated", "rounds")
        good = all(rank > 0 for rank in self.ranks)
        require_that(good, "federated.ranks", self.ranks, "ranks of 1 or more")
        require_not_negative(self, "federated", "longer_rounds")
        require_one_of(self.algorithm, "federated.algorithm", algorithms())


@dataclasses.dataclass(frozen=True)
class Participation:
    """Who takes part in the federated rounds."""

    cohort: str = "1.0"
    """Clients per round: a share such as 0.5 or 1.0, or a number such as 10."""
    weighted: bool = False
    """Draw a cohort's clients by their numbers of examples, not uniformly."""
    dropout: float = 0.0
    """Probability that a client is lost after it has trained in a round."""
    stragglers: float = 0.0
    """Probability that a client finishes only some of a round's steps."""
    newcomers: float = 0.0
    """Share of the clients that join after the federated rounds."""

    def __post_init__(self) -> None:
        check_types(self, "participation.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        expected = "a share such as 0.5 or 1.0, or a number such as 10"
        good = _is_cohort(self.cohort)
        require_that(good, "participation.cohort", self.cohort, expected)
        for name in ("dropout", "stragglers", "newcomers"):
            value = getattr(self, name)
            require_that(0 <= value < 1, f"participation.{name}", value, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Communication:
    """What happens to an upload on its way to the server."""

    compression: Literal["none", "bfloat16", "int8", "top_k"] = "none"
    """How clients compress what they send."""
    top_k_share: float = 0.1
    """Share of an array's entries that top_k sends."""
    privacy_clip: float | None = None
    """Client-level differential privacy: the norm that a client's change is clipped to
    in every round. None: no privacy."""
    privacy_noise: float = 1.0
    """Standard deviation of the noise in a round's sum of changes, as a multiple of the
    clip."""
    privacy_delta: float = 1e-5
    """The delta at which epsilon is reported."""

    def __post_init__(self) -> None:
        check_types(self, "communication.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_positive(self, "communication", "privacy_clip")
        require_not_negative(self, "communication", "privacy_noise")
        share, delta = self.top_k_share, self.privacy_delta
        require_that(0 < share <= 1, "communication.top_k_share", share, "in (0, 1]")
        require_that(0 < delta < 1, "communication.privacy_delta", delta, "in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Local:
    """The local models, and the fine-tuning of the federated one."""

    rounds: int = 20
    """Rounds that each client trains alone."""
    start: Literal["shared", "independent", "federated"] = "shared"
    """Where local training starts: the factors that the federation starts from, factors
    drawn for each client, or the federated adapter."""

    def __post_init__(self) -> None:
        check_types(self, "local.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_positive(self, "local", "rounds")


@dataclasses.dataclass(frozen=True)
class Merging:
    """How the federated and the local model are merged."""

    samples: int = 30
    """Examples of a client that a weight is measured on, training or held-out."""
    curvature: Curvature = "exact"
    """Fisher information over all classes, which takes a backward pass for each; of
    the data's labels (empirical); or of labels drawn from the model (sampled). auto:
    what suits the data, in experiments on several kinds of data."""
    curvature_on: Literal["train", "heldout"] = "train"
    """Which examples the curvature is measured on."""
    damping: Literal["relative", "laplace", "quantile", "harmonic"] = "relative"
    """How Fisher information becomes a posterior variance."""
    damping_value: float = 0.3
    """Relative or harmonic: share of the mean Fisher information; laplace: the prior
    precision; quantile: the quantile."""
    grid_points: int = 11
    """Merge weights that grid search and the oracles try."""
    label_prior: Literal["off", "auto", "on"] = "off"
    """Correct the federated model of every merge by the client's class shares, which
    its training examples show. auto: if held-out samples lose less with it."""
    methods: tuple[str, ...] = ()
    """Merged rows of the table, by name, or all. Names are separated by spaces, and
    need quotes if they have spaces, such as 'potara delta, rank r'. `potara factor`,
    `potara core` and the default weight, `tempered_bayes`, are always included.
    Default: a first choice (uniform, mix, grid, ties, regmean), and all merges and
    weights of your own."""

    def __post_init__(self) -> None:
        check_types(self, "merging.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        kinds = "exact, empirical or sampled"
        good = self.curvature != AUTO  # an experiment resolves it before this
        require_that(good, "merging.curvature", self.curvature, kinds)
        require_positive(self, "merging", "samples", "damping_value")
        require_at_least(self, "merging", 2, "grid_points")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the model is computed; this changes results only by rounding."""

    precision: Precision = "float32"
    """Precision of the frozen base. With the last two, activations are in bfloat16."""
    remat: bool = False
    """Recompute activations for the gradient: less memory, a third more time."""
    frozen: Literal["auto", "device", "host", "disk", "recompute"] = "auto"
    """What the layers before the first adapted one compute: keep it for every example,
    in the memory of the device or the host, or in a temporary file in the cache; or
    recompute it in every step. auto: keep it where it fits in 30 % of the device's
    memory or, without an accelerator, of the free disk."""
    chunk: int | Literal["auto"] = "auto"
    """Clients that are trained at once; auto: as many as fit in memory."""

    def __post_init__(self) -> None:
        check_types(self, "compute.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        if self.chunk != "auto":
            require_at_least(self, "compute", 1, "chunk")


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How a base is pre-trained, unless it is a checkpoint."""

    steps: int = 500
    """Steps of AdamW. 0, on your own data: what suits the device."""
    seed: int = 0
    """Seed of the base's examples, and of its pre-training."""
    batch_size: int = 64
    """Examples of a step."""
    learning_rate: float = 1e-3
    """The largest learning rate: it warms up over a tenth of the steps, and falls to
    zero as a cosine."""

    def __post_init__(self) -> None:
        check_types(self, "pretraining.")

    def check(self) -> None:
        """Raise `ValueError` for an invalid value."""
        require_not_negative(self, "pretraining", "steps")
        require_positive(self, "pretraining", "batch_size", "learning_rate")
        good = 0 <= self.seed < SEEDS
        require_that(good, "pretraining.seed", self.seed, f"in [0, {SEEDS})")


# --- Texts that stand for numbers ----------------------------------------------------


def _is_heterogeneity(value: str) -> bool:
    if value in (TASKS, NATURAL):
        return True
    if value.startswith(SHARDS):
        number = value.removeprefix(SHARDS)
        return number.isdecimal() and len(number) < 7 and int(number) > 0
    return _is_positive_number(value)


def _is_cohort(text: str) -> bool:
    if text.isdecimal():
        return int(text) > 0
    return _is_positive_number(text) and float(text) <= 1


def _is_positive_number(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
