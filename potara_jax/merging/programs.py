"""From stacked federated and local adapters to stacked merged ones, in one program.

Dimension letters: `C` clients, `N` samples, `T` merge weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.clients.compiling import jit
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.keys import subkey
from potara_jax.merging.combining import merge, pair
from potara_jax.merging.curvature import Curvature, finite, real
from potara_jax.merging.interface import Client, Estimator, Measured, Merge, Weight
from potara_jax.merging.likelihoods import Example, Loss
from potara_jax.merging.segment import segment_loss

MakeMerge = Merge | Callable[[Client], Merge] | None


class Samples(NamedTuple):
    """Every client's samples.

    Attributes:
      examples: leaves `[C, N, ...]`; only the first `count` of a client are real, and
        of these, one with an input that is not finite is left out.
      count: `[C]`.
    """

    examples: Example
    count: Array


class Clients(NamedTuple):
    """All clients' models and samples: the arguments of a program, in order.

    Attributes:
      base: the parameters of the base.
      federated: stacked adapters, `[C, ...]`.
      local: stacked adapters, `[C, ...]`.
      samples: what weights are measured on.
      trained_on: the numbers of training examples, `[C]`.
      key: consumed.
    """

    base: Params
    federated: Adapter
    local: Adapter
    samples: Samples
    trained_on: Array
    key: Array


class Merged(NamedTuple):
    """Merged adapters, and what was measured of their weights, see `Measured`.

    Every leaf has the client axis `C`.

    Attributes:
      adapter: the merged ones.
      weight: `[C]`, or a dictionary by module path, or a pytree like the coordinates.
      curvature: what the weight came from, if it is from curvature.
      interval: of the weight's posterior, if the weight says so.
      gains: whether some weight beats both models, if the weight says so.
    """

    adapter: Adapter
    weight: Weight
    curvature: Curvature | None = None
    interval: tuple[Array, Array] | None = None
    gains: Array | None = None


def personalise(
    estimator: Estimator,
    method: MakeMerge = None,
    *,
    space: str | None = None,
    rank: int | None = None,
    layout: Layout = AT_ONCE,
) -> Callable[..., Merged]:
    """Weights from samples, and the merge, as one jitted program over all clients.

    The result is `program(base, federated, local, samples, trained_on, key) -> Merged`.
    `federated` and `local` are stacked adapters `[C, ...]`; `trained_on` `[C]` are the
    numbers of training examples, the `N` of a Laplace posterior; `key` is consumed.

    Args:
      estimator: the merge weight (`potara`, `hermite`, ...).
      method: the merge, or a function from a client to it, for merges that look at the
        client's samples; default `linear()`.
      space: as in `merge`.
      rank: as in `merge`.
      layout: the number of clients computed together, and the devices.
    """
    weigh_all = weigh(estimator, layout=layout)
    merge_all = combine(method, space=space, rank=rank, layout=layout)

    @jit
    def program(*arguments: Any) -> Merged:
        clients = Clients(*arguments)
        measured = weigh_all(*clients)
        adapter = merge_all(*clients, measured.weight)
        return Merged(adapter, *measured)

    return program


def weigh(estimator: Estimator, *, layout: Layout = AT_ONCE) -> Callable[..., Measured]:
    """The first half of `personalise`: `program(...) -> Measured`, jitted."""
    measure = over_each(estimator.measure, layout=layout)

    @jit
    def program(*arguments: Any) -> Measured:
        clients = Clients(*arguments)
        measured, decide = measure(*clients), estimator.decide
        if decide is None:
            return measured
        return decide(measured, jax.vmap(real)(*clients.samples).sum(-1))

    return program


def combine(
    method: MakeMerge = None,
    *,
    space: str | None = None,
    rank: int | None = None,
    layout: Layout = AT_ONCE,
) -> Callable[..., Adapter]:
    """The second half: `program(..., weight) -> adapters`, jitted.

    The weight is that of the federated adapters, stacked `[C, ...]`, as `Measured` has
    it.

    Args:
      method: see `personalise`.
      space: as in `merge`.
      rank: as in `merge`.
      layout: see `Layout`.
    """

    def one(client: Client, weight: Weight) -> Adapter:
        chosen = (
            method if method is None or isinstance(method, Merge) else method(client)
        )
        weights = weight if isinstance(weight, tuple) else pair(weight)
        both = client.federated, client.local
        key = subkey(client.key, "merge")
        return merge(both, weights, method=chosen, space=space, rank=rank, key=key)

    return over_each(one, layout=layout)


def over_each(
    fn: Callable[..., Any], *, layout: Layout = AT_ONCE
) -> Callable[..., Any]:
    """`fn(client, *more)` over all clients: `program(base, ..., key, *more)`, jitted.

    For what `weigh` and `combine` do not do, such as a statistic of your own. Every
    leaf of `more` has the client axis. Client `k`'s key is `fold_in(key, k)`.

    Args:
      fn: of one client.
      layout: see `Layout`.
    """

    def program(layout: Layout, *arguments: Any) -> Any:
        each, more = _each(Clients(*arguments[:6])), arguments[6:]
        axes = (None, *[0] * (len(each) - 1 + len(more)))
        mapped = over_clients(
            lambda *args: fn(_client(*args[:7]), *args[7:]), in_axes=axes, layout=layout
        )
        return mapped(*each, *more)

    return jit_over_clients(lambda chunks: partial(program, chunks), layout, _clients)


def _each(clients: Clients) -> tuple[Any, ...]:
    """The base, and every client's part of all else `[C, ...]`; see `_client`."""
    *models, (examples, count), trained_on, key = clients
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count.shape[0]))
    return (*models, examples, count, trained_on, keys)


def _client(
    base: Params,
    federated: Adapter,
    local: Adapter,
    examples: Example,
    count: Array,
    trained_on: Array,
    key: Array,
) -> Client:
    """One client, of whose samples those that are padded or not finite are left out."""
    weight = real(examples, count)
    return Client(base, federated, local, finite(examples), weight, trained_on, key)


def loss_curves(loss: Loss, *, layout: Layout = AT_ONCE) -> Callable[..., Array]:
    """`program(base, federated, local, samples, points) -> losses [C, T]`, jitted.

    Each client's mean loss along its segment at merge weights `points` `[T]`: what a
    grid search sees, and a check of linear mode connectivity.

    Args:
      loss: `(base, adapter, examples) -> [N]`.
      layout: see `Layout`.
    """

    def one(
        base: Params,
        federated: Adapter,
        local: Adapter,
        samples: Samples,
        points: Array,
    ) -> Array:
        nothing: Any = None  # neither the training nor the key matters to a loss
        client = _client(base, federated, local, *samples, nothing, nothing)
        return jax.lax.map(segment_loss(loss, client), points)

    axes = (None, 0, 0, 0, None)
    return jit_over_clients(
        lambda chunks: over_clients(one, in_axes=axes, layout=chunks), layout, _clients
    )


def _clients(*args: Any) -> int:
    """The number of clients, from a program's arguments."""
    return len(args[3].count)
