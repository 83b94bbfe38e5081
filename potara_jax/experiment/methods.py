"""Which merged rows a table has: a merge weight, and how the models are merged.

Weights and merges come from the registries of `potara_jax.merging`; this module adds
the variants of Potara.
"""

from __future__ import annotations

from typing import NamedTuple

from potara_jax.clients.task import Task
from potara_jax.experiment.checks import require_one_of
from potara_jax.experiment.experiment import Experiment
from potara_jax.merging import registry


class Weighing(NamedTuple):
    """A merge weight, and the samples that it is measured on.

    Attributes:
      weight: its name.
      samples: `none`, or the client's `train`ing or `heldout` examples.
      space: where curvature is measured, for weights that measure it.
      per: whether there is one weight per `client` or per `module`.
    """

    weight: str
    samples: str = "heldout"
    space: str | None = None
    per: str = "client"

    @property
    def title(self) -> str:
        """The weighing in words, without its samples."""
        words = self.weight if self.space is None else f"{self.weight} {self.space}"
        return words if self.per == "client" else f"{words}, per {self.per}"


class Combination(NamedTuple):
    """How two models are merged.

    Attributes:
      merge: its name.
      space: where they are merged; by default the merge's best.
      rank: of the result; by default the exact one.
    """

    merge: str = "linear"
    space: str | None = None
    rank: int | None = None


class Method(NamedTuple):
    """A row of the table that merges: a weight, and what is done with it."""

    name: str
    weighing: Weighing
    combination: Combination


UNIFORM = Weighing("constant", "none")
EXACT, BY_FACTOR = Combination("linear", "delta"), Combination("linear", "factor")
POTARA = "potara core"  # the paper's weight, gauge-free
WITH_PRIOR = "federated + label prior"  # no merge: corrected by the client's shares
# Methods whose models can be exported.
KEPT = (POTARA, *registry.DEFAULTS, WITH_PRIOR, "federated", "local")
# A choice of rows for large models, without the weights and merges that take long.
QUICK = (
    *("uniform", "potara delta, rank r", "potara core, per module"),
    *("potara core, held-out", "fisher", "hermite", "grid", "ties", "dare"),
)
# What one wants to see first, and the name of all there is.
FIRST, ALL = ("uniform", "mix", "grid", "ties", "regmean"), "all"
_ALWAYS = (POTARA, "potara factor")
_OF_POTARA = ("constant", "potara", "fisher")


def potara(experiment: Experiment, space: str = "core") -> Weighing:
    """Potara's weight from the curvature in a space."""
    return Weighing("potara", experiment.merging.curvature_on, space)


def default_method(experiment: Experiment, task: Task) -> Method:
    """The row of the default weight."""
    known = {method.name: method for method in all_methods(experiment)}
    return known[registry.default(logits=task.logits is not None)]


def merged_methods(experiment: Experiment, task: Task) -> tuple[Method, ...]:
    """The merged rows, in order: those that are selected and that the task allows.

    By default these are a first choice, and all of the user's own merges and weights.

    Args:
      experiment: with its settings.
      task: what the clients learn.
    """
    named = experiment.merging.methods
    default = registry.default(logits=task.logits is not None)
    selected = {*(named or FIRST), *_ALWAYS, default}
    return tuple(
        method
        for method in all_methods(experiment)
        if (ALL in named or method.name in selected or not (named or _packaged(method)))
        and _is_possible(method, task)
    )


def _packaged(method: Method) -> bool:
    """Whether both the weight and the merge of a row come with this package."""
    weight = registry.weights()[method.weighing.weight]
    merge = registry.merges()[method.combination.merge]
    makers = (entry.make.__module__ for entry in (weight, merge))
    return all(module.startswith("potara_jax.") for module in makers)


def check(experiment: Experiment) -> None:
    """Raise `ValueError` if a selected row does not exist."""
    known = [*(method.name for method in all_methods(experiment)), ALL]
    for name in experiment.merging.methods:
        require_one_of(name, "merging.methods", known)


def check_possible(experiment: Experiment, task: Task) -> None:
    """Raise `ValueError` if a selected row needs what the task does not provide."""
    for method in all_methods(experiment):
        if method.name in experiment.merging.methods and not _is_possible(method, task):
            raise ValueError(
                f"merging.methods names '{method.name}', which needs "
                f"{_needs(method)}: this task does not give it"
            )


def _needs(method: Method) -> str:
    """What a row needs of a task, in words."""
    if registry.merges()[method.combination.merge].needs == "grams":
        return "the inputs of every module"
    return "logits, and one label per example"


def all_methods(experiment: Experiment) -> tuple[Method, ...]:
    """Every merged row."""
    return (
        Method("uniform", UNIFORM, EXACT),
        *_potara_methods(experiment),
        *_by_weight(),
        *_by_merge(),
    )


def _potara_methods(experiment: Experiment) -> tuple[Method, ...]:
    core, factor = potara(experiment), potara(experiment, "factor")
    trained = experiment.merging.curvature_on == "train"
    other, title = ("heldout", "held-out") if trained else ("train", "train")
    rank = experiment.lora.rank
    return (
        Method("potara factor", factor, BY_FACTOR),
        Method("potara delta", factor, EXACT),
        Method("potara delta, rank r", factor, EXACT._replace(rank=rank)),
        Method(POTARA, core, EXACT),
        Method("potara core, per module", core._replace(per="module"), EXACT),
        Method(f"potara core, {title}", core._replace(samples=other), EXACT),
        Method("fisher", core._replace(weight="fisher"), Combination("linear", "core")),
    )


def _by_weight() -> list[Method]:
    """Every other weight, merged in its space; this project's weights first."""
    methods = [
        Method(name, Weighing(name, entry.samples), Combination("linear", entry.space))
        for name, entry in registry.weights().items()
        if name not in _OF_POTARA
    ]
    first = registry.DEFAULTS
    return [
        *(method for name in first for method in methods if method.name == name),
        *(method for method in methods if method.name not in first),
    ]


def _by_merge() -> list[Method]:
    """Every other merge, at equal weights."""
    return [
        Method(variant.name, UNIFORM, Combination(name, variant.space))
        for name, entry in registry.merges().items()
        if name != "linear"
        for variant in entry.variants
    ]


def _is_possible(method: Method, task: Task) -> bool:
    """Whether a task provides what a row needs."""
    weight = registry.weights()[method.weighing.weight]
    merge = registry.merges()[method.combination.merge]
    suits = weight.suits(logits=task.logits is not None, one_label=not task.sequences)
    return suits and (merge.needs == "nothing" or task.inputs is not None)
