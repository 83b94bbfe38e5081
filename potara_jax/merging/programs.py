"""Potara: from stacked federated and local adapters to stacked merged ones.

Zou, Shisher, Brinton, Tripathi 2026, *Communication-Efficient Personalized Adaptation
via Federated-Local Model Merging* (arXiv 2602.18658). Dimension letters: `C` clients,
`N` samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.clients.axis import over_clients
from potara_jax.merging.curvature import Curvature, Example, Likelihood, curvature
from potara_jax.merging.merges import blend, merge, per_module, truncate
from potara_jax.merging.spaces import SPACES
from potara_jax.merging.weights import Damping, hermite, potara_weight


class Samples(NamedTuple):
    """What a client measures with: `examples`, leaves `[C, N, ...]`, `count` `[C]`.

    Only the first `count` examples of a client are real.
    """

    examples: Example
    count: Array


class Merged(NamedTuple):
    """Merged adapters, the weights of the federated ones, and what they come from.

    Every leaf has the client axis `C`. `weight` is `[C]`, or a dictionary by module
    path, or a pytree like the coordinates.
    """

    adapter: Adapter
    weight: Any
    curvature: Curvature | None = None


def potara(
    likelihood: Likelihood,
    damping: Damping,
    *,
    space: str = "core",
    per: str = "client",
    rank: int | None = None,
    chunk: int = 10,
    clients_at_once: int | None = None,
) -> Callable[..., Merged]:
    """Potara's merge as one jitted program over all clients.

    The result is `program(base, federated, local, samples, trained_on, key) -> Merged`:
    curvature of both models on a client's samples, the closed-form weight, the merge.
    `federated` and `local` are stacked adapters `[C, ...]`; `trained_on` `[C]` are the
    numbers of training examples, the `N` of the Laplace posterior; `key` is consumed.

    likelihood: which Fisher (`exact`, `empirical`, `sampled`).
    damping: from Fisher to posterior variance (`relative`, `laplace`, ...).
    space: `factor` or `core`: where curvature is measured and the merge is linear.
    per: `client`, `module` or `parameter`: how many weights a client has.
    rank: truncate the merged deltas; default: exact.
    chunk, clients_at_once: samples and clients computed together, to bound memory.

    Raises `ValueError` for a space that is not one of these.
    """
    if space not in SPACES:
        raise ValueError(f"unknown space '{space}': choose from {list(SPACES)}")

    def one(base, federated, local, examples, count, trained_on, key):
        theta = SPACES[space](federated, local)
        measured = curvature(
            lambda t, example, k: likelihood(base, theta.assemble(t), example, k),
            *theta[:2],
            examples,
            count,
            key,
            chunk=chunk,
        )
        weight = potara_weight(measured, damping, trained_on, per=per)
        adapter = blend(theta, per_module(weight, local))
        if rank is not None:
            adapter = truncate(adapter, rank=rank)
        return Merged(adapter, weight, measured)

    return _program(one, clients_at_once)


def _program(one, clients_at_once) -> Callable[..., Merged]:
    axes = (None, 0, 0, 0, 0, 0, 0)
    mapped = over_clients(one, in_axes=axes, chunk=clients_at_once)

    def program(base, federated, local, samples, trained_on, key):
        keys = jax.vmap(partial(jax.random.fold_in, key))(
            jax.numpy.arange(samples.count.shape[0])
        )
        return mapped(base, federated, local, *samples, trained_on, keys)

    return jax.jit(program)


def segment_loss(
    loss: Callable[[Params, Adapter, Example], Array],
    base: Params,
    federated: Adapter,
    local: Adapter,
    samples: Samples,
) -> Callable[[Array], Array]:
    """One client's mean loss on its samples, as a function of the merge weight.

    loss: `(base, adapter, examples) -> [N]`. The merge is the exact one.
    """

    def at(weight):
        merged = merge(federated, local, weight, space="delta")
        losses = loss(base, merged, samples.examples)
        real = jax.numpy.arange(losses.shape[0]) < samples.count
        total = jax.numpy.where(real, losses, 0).sum()
        return total / jax.numpy.maximum(samples.count, 1)

    return at


def hermite_merge(
    loss: Callable[[Params, Adapter, Example], Array],
    *,
    clients_at_once: int | None = None,
) -> Callable[..., Merged]:
    """The exact merge at the minimum of the cubic through the segment's ends.

    The result is `program(base, federated, local, samples) -> Merged`, jitted; two
    forward passes with a Jacobian-vector product each, on every client's samples.
    """

    def one(base, federated, local, samples):
        weight = hermite(segment_loss(loss, base, federated, local, samples))
        return Merged(merge(federated, local, weight, space="delta"), weight)

    return jax.jit(over_clients(one, in_axes=(None, 0, 0, 0), chunk=clients_at_once))


def loss_curves(
    loss: Callable[[Params, Adapter, Example], Array],
    *,
    clients_at_once: int | None = None,
) -> Callable[..., Array]:
    """`program(base, federated, local, samples, points) -> losses [C, T]`, jitted.

    Each client's mean loss along its segment at merge weights `points` `[T]`: what a
    grid search sees, and the check of linear mode connectivity.
    """

    def one(base, federated, local, samples, points):
        at = segment_loss(loss, base, federated, local, samples)
        return jax.lax.map(at, points)

    return jax.jit(
        over_clients(one, in_axes=(None, 0, 0, 0, None), chunk=clients_at_once)
    )
