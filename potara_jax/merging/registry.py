"""Every merge and every merge weight, by name, with all that a table says of it.

A file of `potara_jax.merging.merges` or `.weights` registers what it defines, and so
may any other module; nothing else need change:

    from potara_jax.merging import Merge, registry

    @registry.merge("largest", spaces=("core", "factor"), reference="this file",
                    summary="the entry of largest magnitude")
    def largest() -> Merge:
        return Merge("largest", _largest, ("core", "factor"), relative=True)

    registry.merges()["largest"].make()                     -> Merge
    registry.weights()["hermite"].make(task.loss)           -> Estimator
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax

from potara_jax.merging.curvature import Curvature
from potara_jax.merging.interface import Estimator, Merge, Weight
from potara_jax.merging.likelihoods import Likelihood, Logits, Loss
from potara_jax.merging.spaces import SPACES

MergeNeeds = Literal["nothing", "grams"]
WeightNeeds = Literal["nothing", "loss", "logits", "likelihood"]
Samples = Literal["none", "train", "heldout"]
Labels = Literal["any", "one"]

# The name of all rows, and rows of a table beside those of the registered merges and
# weights: no other row can have their names.
RESERVED = frozenset(
    {
        "all",
        "base",
        "auto",
        "best constant weight",
        "best weight per client",
        "ensemble",
        "federated",
        "federated + fine-tuning",
        "federated + label prior",
        "largest class",
        "local",
        "potara core",
        "potara core, held-out",
        "potara core, per module",
        "potara core, train",
        "potara delta",
        "potara delta, rank r",
        "potara factor",
        "uniform",
    }
)

# The default weight: of a task with logits, and of one with a loss alone.
DEFAULTS = ("tempered_bayes", "hermite_bayes")

_MakeMerge = TypeVar("_MakeMerge", bound=Callable[..., Merge])
_MakeWeight = TypeVar("_MakeWeight", bound=Callable[..., Estimator])


class Variant(NamedTuple):
    """A merge as a table shows it: under a name, in a space."""

    name: str
    space: str


class Work(NamedTuple):
    """What a weight's cost depends on.

    Costs are counted, not timed: a backward pass is two forward passes, a
    Jacobian-vector product is one beside its forward pass.

    Attributes:
      classes: that a Fisher is taken of: the task's for the exact one, else 1.
      modules: the number of adapted modules.
      points: of a grid.
      steps: of a gradient descent.
    """

    classes: int
    modules: int
    points: int = 21
    steps: int = 25


def fisher_passes(work: Work) -> float:
    """The cost of two models' Fisher: a forward pass, and a backward pass a class."""
    return 2 * (1 + 2 * work.classes) / 3


@dataclasses.dataclass(frozen=True)
class MergeEntry:
    """A registered merge.

    Attributes:
      name: of the merge in its first space.
      make: `make(**options) -> Merge`, or `make(grams, **options)` where it needs the
        Gram matrices of the inputs.
      spaces: where it merges, the best first.
      summary: what it does.
      reference: its paper.
      needs: what `make` takes: `nothing` or `grams`.
      variants: what a table shows: the name in the first space, and others.
    """

    name: str
    make: Callable[..., Merge]
    spaces: tuple[str, ...]
    summary: str
    reference: str
    needs: MergeNeeds
    variants: tuple[Variant, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Options of `make` with their defaults."""
        return _options(self.make)


@dataclasses.dataclass(frozen=True)
class WeightEntry:
    """A registered merge weight.

    Attributes:
      name: of the weight.
      make: `make(needed, **options) -> Estimator`.
      needs: what `make` takes of the task: the `loss` of a batch, its `logits`, the
        `likelihood` of one example, or `nothing`.
      samples: which it looks at.
      space: where a table merges with its weights.
      passes: `passes(work)`, its cost a sample, in forward-backward passes of one
        model.
      summary: what it does.
      reference: its paper.
      labels: `one` where every example must have one label.
      costly: that a table of many settings had better leave it out.
      bounded: whether every weight is in [0, 1].
      from_curvature: `from_curvature(curvature, examples)`, the weight from curvature
        that another weight has measured already, or None.
    """

    name: str
    make: Callable[..., Estimator]
    needs: WeightNeeds
    samples: Samples
    space: str
    passes: Callable[[Work], float]
    summary: str
    reference: str
    labels: Labels = "any"
    costly: bool = False
    bounded: bool = True
    from_curvature: Callable[[Curvature, jax.Array], Weight] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of `make` with their defaults."""
        return _options(self.make)

    def suits(self, *, logits: bool, one_label: bool) -> bool:
        """Whether a task gives what is needed: logits, one label an example."""
        given = logits or self.needs != "logits"
        return given and (one_label or self.labels == "any")

    def build(
        self,
        *,
        loss: Loss | None = None,
        logits: Logits | None = None,
        likelihood: Likelihood | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Estimator:
        """The estimator for a task.

        Args:
          loss: of a batch.
          logits: of a batch.
          likelihood: of one example.
          options: for all weights; those that this one does not have are ignored.

        Raises:
          ValueError: what the weight needs is not given.
        """
        chosen = {k: v for k, v in options.items() if k in self.options}
        if self.needs == "nothing":
            return self.make(**chosen)
        needed = {"loss": loss, "logits": logits, "likelihood": likelihood}[self.needs]
        if needed is None:
            raise ValueError(f"weight '{self.name}' needs the task's {self.needs}")
        return self.make(needed, **chosen)


def _options(make: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


_MERGES: dict[str, MergeEntry] = {}
_WEIGHTS: dict[str, WeightEntry] = {}


# --- Registering ---------------------------------------------------------------------


def merge(
    name: str,
    *,
    spaces: Sequence[str],
    summary: str,
    reference: str,
    needs: MergeNeeds = "nothing",
    variants: Sequence[tuple[str, str]] = (),
) -> Callable[[_MakeMerge], _MakeMerge]:
    """Register a function that makes a `Merge`.

    Args:
      name: what tables and the command line call it.
      spaces: where it merges, the best first, as the `Merge` itself says.
      summary: what it does, in one line.
      reference: where it was published.
      needs: `nothing`, or `grams`: see `MergeEntry`.
      variants: `(name, space)` of further rows of a table, beside the name in the first
        space.

    Raises:
      ValueError: an unknown space or need, or a name that is taken.
    """
    _check_spaces(name, [*spaces, *(space for _, space in variants)])
    _check_one_of(name, "needs", needs, get_args(MergeNeeds))
    shown = tuple(Variant(*v) for v in [(name, spaces[0]), *variants])

    def register(make: _MakeMerge) -> _MakeMerge:
        entry = MergeEntry(name, make, tuple(spaces), summary, reference, needs, shown)
        _check_free("merge", _MERGES, entry, lambda e: {v.name for v in e.variants})
        _MERGES[name] = entry
        return make

    return register


def weight(
    name: str,
    *,
    needs: WeightNeeds,
    samples: Samples,
    passes: Callable[[Work], float],
    summary: str,
    reference: str,
    space: str = "delta",
    labels: Labels = "any",
    costly: bool = False,
    bounded: bool = True,
    from_curvature: Callable[[Curvature, jax.Array], Weight] | None = None,
) -> Callable[[_MakeWeight], _MakeWeight]:
    """Register a function that makes an `Estimator`.

    Args:
      name: see `WeightEntry`, as for all others.
      needs: what it takes of the task.
      samples: which it looks at.
      passes: its cost.
      summary: what it does.
      reference: its paper.
      space: where a table merges with its weights.
      labels: which examples it is for.
      costly: whether a table of many settings leaves it out.
      bounded: whether every weight is in [0, 1].
      from_curvature: the weight from curvature.

    Raises:
      ValueError: a space, a need or a kind of samples or labels is unknown, or the name
        is taken.
    """
    _check_spaces(name, [space])
    _check_one_of(name, "needs", needs, get_args(WeightNeeds))
    _check_one_of(name, "samples", samples, get_args(Samples))
    _check_one_of(name, "labels", labels, get_args(Labels))

    def register(make: _MakeWeight) -> _MakeWeight:
        entry = WeightEntry(
            name=name,
            make=make,
            needs=needs,
            samples=samples,
            space=space,
            passes=passes,
            summary=summary,
            reference=reference,
            labels=labels,
            costly=costly,
            bounded=bounded,
            from_curvature=from_curvature,
        )
        _check_free("weight", _WEIGHTS, entry, lambda e: {e.name})
        _WEIGHTS[name] = entry
        return make

    return register


def _check_spaces(name: str, spaces: Sequence[str]) -> None:
    if not spaces:
        raise ValueError(f"'{name}' must name the spaces that it merges in")
    for space in spaces:
        _check_one_of(name, "space", space, SPACES)


def _check_one_of(name: str, field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(
            f"{field} of '{name}' is {value!r}: it must be one of {', '.join(known)}"
        )


def _check_free(
    kind: str,
    entries: Mapping[str, Any],
    entry: Any,
    names: Callable[[Any], set[str]],
) -> None:
    """Raise `ValueError` for a name that another function or row of a table has.

    The same function may come again, as when a cell of a notebook is run twice.
    """
    if reserved := sorted(names(entry) & RESERVED):
        raise ValueError(
            f"a {kind} cannot be called '{reserved[0]}', which is another row of the "
            "table: choose another name"
        )
    for known in entries.values():
        taken = sorted(names(known) & names(entry))
        if taken and _origin(known.make) != _origin(entry.make):
            raise ValueError(
                f"the {kind} '{taken[0]}' is already registered, by "
                f"{known.make.__module__}: choose another name"
            )


def _origin(make: Callable[..., Any]) -> tuple[str, str]:
    return make.__module__, make.__qualname__


# --- Looking up ----------------------------------------------------------------------


def merges() -> dict[str, MergeEntry]:
    """Every merge by name, with every file of the package imported.

    Examples:
      >>> merges()["ties"].spaces
      ('core', 'knots', 'factor', 'aligned')
    """
    _import_all("potara_jax.merging.merges")
    return dict(sorted(_MERGES.items()))


def weights() -> dict[str, WeightEntry]:
    """Every merge weight by name, with every file of the package imported."""
    _import_all("potara_jax.merging.weights")
    return dict(sorted(_WEIGHTS.items()))


def default(*, logits: bool) -> str:
    """The name of the default weight: of a task with logits, or with a loss alone."""
    return DEFAULTS[0] if logits else DEFAULTS[1]


def auto(loss: Loss, logits: Logits | None = None) -> Estimator:
    """The default weight of a task, from its logits if it has any."""
    return weights()[default(logits=logits is not None)].build(loss=loss, logits=logits)


def _import_all(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
