"""What an experiment gives the runner: a model with its base, and federations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Adapter, Params
from potara_jax.clients.task import Task
from potara_jax.data import dealing, partition
from potara_jax.data.federation import Batch, Federation, Weighted
from potara_jax.experiment.settings import Settings
from potara_jax.models.publishing import Form


class Writer(NamedTuple):
    """How a model writes answers to prompts.

    `write(base, adapter, prompts [B, L], counts [B], most) -> [B, most]`: tokens, by
    greedy decoding, `stop` behind their end; `text(tokens)`.
    """

    write: Callable
    text: Callable[[Iterable[int]], str]
    stop: int


class Held(NamedTuple):
    """What clients hold, for people: strata of a `kind`, and the clients, by name.

    `names` of the strata and `clients` may be empty: they are then numbers.
    """

    kind: str = "class"
    names: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()


class Problem(NamedTuple):
    """A pre-trained model, what is adapted of it, and who adapts it.

    `federations`: by `(heterogeneity, seed)`, all padded to one length, so that one
    compiled program serves them all. `adapter(key, rank)`: a fresh one; by default of
    the settings' rank. `form`: how the model is written for others to load.
    `writer`: how it writes answers, or None. `held`: the names of what is there.
    """

    task: Task
    base: Params
    adapter: Callable[..., Adapter]
    federations: dict[tuple[str, int], Federation]
    form: Form | None = None
    writer: Writer | None = None
    held: Held = Held()


def initial_adapter(
    sites: dict[str, lora.Site], *, rank: int, base: Params, trained: tuple[str, ...]
) -> Callable[..., Adapter]:
    """A function from a key to an adapter: fresh factors, the base's whole modules."""
    whole = lora.trained_modules(base, trained)
    return lambda key, rank=rank: lora.init(key, sites, rank=rank) | whole


def federations(
    settings: Settings, make: Callable[[tuple[str, int], int | None], Federation]
) -> dict[tuple[str, int], Federation]:
    """One a heterogeneity and seed, all padded to the length of the largest.

    make: `(cell, size) -> federation`, padded to `size`, or as it comes for None.
    """
    cells = [(h, s) for h in settings.heterogeneity for s in settings.seeds]
    size = max(make(cell, None).train.index.shape[1] for cell in cells)
    made = {cell: make(cell, size) for cell in cells}
    tested = max(_tested(federation.test) for federation in made.values())
    fit = lambda f: f._replace(test=jax.tree.map(partial(_fitted, tested), f.test))
    return {cell: fit(federation) for cell, federation in made.items()}


def _tested(test: Weighted) -> int:
    """The columns of a test up to the last one that counts for any client."""
    return int(np.flatnonzero((test.weight > 0).any(0))[-1]) + 1


def _fitted(size: int, x: jax.Array) -> jax.Array:
    """Columns cut, or padded with zeros, to a number."""
    kept = x[:, :size]
    return jnp.pad(kept, ((0, 0), (0, size - kept.shape[1])))


def dealt(
    settings: Settings,
    pool: Batch,
    strata: np.ndarray,
    cell: tuple[str, int],
    size: int | None,
    *,
    testing: np.ndarray | None = None,
    most: int | None = None,
) -> Federation:
    """Clients that hold the pool's examples, each with strata of its own.

    strata: the class or task of every example. testing: which of them are for tests
      alone; default: some of every stratum, drawn by the seed. most: tests of a client.
    """
    heterogeneity, seed = cell
    rng = np.random.default_rng([seed, 1])
    parts = _parts(rng, strata, testing)
    train = parts["train"]
    how = {"clients": settings.clients}
    groups = dealing.deal(rng, strata[train], heterogeneity, **how)
    return dealing.federate(
        rng,
        pool,
        strata,
        parts,
        [train[group] for group in groups],
        heldout=settings.samples,
        test=most,
        size=size,
    )


_SHARES = {"train": 0.6, "heldout": 0.2, "test": 0.2}


def _parts(rng, strata, testing) -> dict[str, np.ndarray]:
    if testing is None:
        return partition.split(rng, strata, _SHARES)
    own = np.flatnonzero(~testing)
    shares = {"train": 0.9, "heldout": 0.1}
    found = partition.split(rng, strata[own], shares)
    return {n: own[x] for n, x in found.items()} | {"test": np.flatnonzero(testing)}
