"""The types of merging: a merge, a merge weight, and the client that they are for.

A `Merge` makes one adapter out of several with given weights; an `Estimator` makes the
weights from a client's samples. Both are written for one client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.merging.curvature import Curvature
from potara_jax.merging.likelihoods import Example

Weight = Any  # a scalar, {path: scalar}, or a pytree like the coordinates

ANY = ("delta", "core", "knots", "factor", "aligned")
DENSE = ("core", "knots", "factor", "aligned")


class Place(NamedTuple):
    """The array being merged.

    Attributes:
      path: of its module.
      key: for what is drawn at random, or None.
      used: `[..., rows, columns]`, False for entries of directions that no adapter
        uses, which are zero in all of them; None where every entry counts.
    """

    path: str
    key: Array | None = None
    used: Array | None = None


class Merge(NamedTuple):
    """How to combine the arrays `[..., rows, columns]` that adapters have in a space.

    Three fields (`scale`, `adds`, `relative`) say how large the merged delta is, so
    that it is so in every space.

    Attributes:
      name: of the method.
      combine: `combine(arrays, weights, place)` returns one array.
      spaces: those where that makes sense, the best first.
      random: whether `place.key` is needed.
      scale: multiplies the delta.
      adds: the method is published as a sum of `n` task vectors, not as a mean: it is
        multiplied by `n`, so that weights of `1/n` give the sum.
      relative: only the ratios of the weights matter.
    """

    name: str
    combine: Callable[[Sequence[Array], Sequence[Any], Place], Array]
    spaces: tuple[str, ...]
    random: bool = False
    scale: float = 1.0
    adds: bool = False
    relative: bool = False


class Client(NamedTuple):
    """One client's two models and its samples.

    Attributes:
      base: the parameters of the base.
      federated: the client's federated adapter.
      local: the adapter that the client has trained alone.
      examples: leaves `[N, ...]`.
      weight: of each sample, `[N]`, zero for one that is padded or left out.
      trained_on: the number of training examples.
      key: consumed.
    """

    base: Params
    federated: Adapter
    local: Adapter
    examples: Example
    weight: Array
    trained_on: Array
    key: Array


class Measured(NamedTuple):
    """A client's weight, and how sure it is.

    Attributes:
      weight: of the federated adapter: a scalar, one a module, or one a coordinate; or,
        for methods whose weights do not sum to one, a tuple: of the federated and of
        the local adapter.
      curvature: what it came from, if it is from curvature.
      interval: the 5 % and the 95 % quantile of the weight's posterior, or over
        bootstrap samples, like `weight`; None for weights that do not say.
      gains: whether some weight beats the better of both models with confidence, a
        boolean; None for weights that do not say.
    """

    weight: Weight
    curvature: Curvature | None = None
    interval: tuple[Array, Array] | None = None
    gains: Array | None = None


class Estimator(NamedTuple):
    """A merge weight.

    Attributes:
      name: of the weight.
      measure: `measure(client)`, what one client measures.
      decide: `decide(measured [C], counts [C])` turns all clients' measurements and
        numbers of samples into their `Measured`, for weights that clients choose
        together; None: `measure` returns it.
    """

    name: str
    measure: Callable[[Client], Any]
    decide: Callable[[Any, Array], Measured] | None = None
