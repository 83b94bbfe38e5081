"""FedALA: clients learn how much of the server's model to take (Zhang et al. 2023).

    theta = personal + W * (received - personal),   W in [0, 1], one for every number

on the last modules; the others are the received ones (arXiv 2212.01197, eqs. 2 to 5).
`W` descends the loss of a random share of the client's examples. From its second round
on a client makes one pass over them; at first it goes on until the losses of ten passes
have settled, as the paper's code does. A pass takes as many steps as a round. A client
that has not taken part has the received model.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train, batch_index, run_steps
from potara_jax.data.federation import Ragged, take
from potara_jax.federated.aggregation import select
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import divide, last_modules
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm
from potara_jax.keys import subkey

_SETTLED = 10  # passes whose losses are compared


@algorithm(
    "fedala",
    "Zhang et al. 2023, arXiv 2212.01197",
    "learns a mix of server and client before training",
    differs="a pass over the data is a round of steps; 20 passes at most",
)
def fedala(
    task: Task,
    train: Train,
    *,
    blocks: int = 1,
    rate: float = 1.0,
    share: float = 0.8,
    threshold: float = 0.1,
    passes: int = 20,
) -> Algorithm:
    """FedALA.

    Args:
      task: what the clients learn.
      train: a client's local steps.
      blocks: the number of last blocks, whose modules are mixed.
      rate: of the weights' gradient descent.
      share: of a client's examples that a round learns the weights on.
      threshold: standard deviation of ten losses that have settled.
      passes: the maximum number of a client's first passes; the paper's code has no
        limit.
    """

    def init_client(adapter, client, key):
        upper, _ = divide(adapter, last_modules(adapter, blocks))
        weights = jax.tree.map(jnp.ones_like, upper)
        no = jnp.array(False)
        return {"personal": adapter, "weights": weights, "settled": no, "begun": no}

    def client(shared, received, state, examples, key):
        loss, first = task.objective(shared.base), shared.round == 0
        start = lambda weights: _mixed(state["personal"], received, weights)

        def descend(weights, draw):
            batch = take(shared.pool, draw)
            of = lambda weights: loss(start(weights), batch)
            value, grads = jax.value_and_grad(of)(weights)
            move = lambda w, g: jnp.clip(w - rate * g, 0, 1)
            return jax.tree.map(move, weights, grads), value

        sample = _sampled(examples, share, subkey(key, "samples"))
        draws = train.batches(sample, key)
        learn = lambda weights: run_steps(descend, weights, draws, examples)
        limit = jnp.where(first, 0, jnp.where(state["settled"], 1, passes))
        weights, before = _until_settled(
            learn, state["weights"], (passes, train.steps), limit, threshold
        )
        begin = jax.tree.map(
            lambda old, new: jnp.where(first, old, new), received, start(weights)
        )
        adapter, losses = train(loss, begin, shared.pool, examples, key)
        settled = state["settled"] | (shared.round != 0)
        state = {"personal": adapter, "weights": weights, "settled": settled}
        state |= {"begun": jnp.array(True)}
        return Update(state, adapter, jnp.append(before, losses), received)

    return fedit(task, train)._replace(
        name="FedALA",
        init_client=init_client,
        client=client,
        personalise=lambda shared, received, state, examples: select(
            state["begun"], state["personal"], received
        ),
        personal=True,
    )


def _sampled(examples: Ragged, share: float, key: Array) -> Ragged:
    """A random share of a client's examples, at least one."""
    shuffled = batch_index(key, examples, steps=len(examples.index), batch_size=1)
    count = jnp.maximum(jnp.floor(share * examples.count), 1).astype(jnp.int32)
    return examples._replace(index=shuffled[:, 0], count=count)


def _until_settled(
    learn: Callable[[Adapter], tuple[Adapter, Array]],
    weights: Adapter,
    shape: tuple[int, int],
    limit: Array,
    threshold: float,
) -> tuple[Adapter, Array]:
    """The weights after passes until the losses at their ends settle, and all losses.

    Args:
      learn: a pass, which gives its losses `[S]`.
      weights: to begin with.
      shape: of all losses, the number of passes at most and `S`; those of passes that
        are not made are NaN.
      limit: passes of this client, at most.
      threshold: of the last losses' standard deviation.
    """
    passes = shape[0]

    def go_on(carry):
        number, _, _, ends = carry
        last = (jnp.arange(passes) < number) & (jnp.arange(passes) >= number - _SETTLED)
        spread = jnp.std(ends, where=last)
        return (number < limit) & ~((number > _SETTLED) & (spread < threshold))

    def one_pass(carry):
        number, weights, losses, ends = carry
        weights, new = learn(weights)
        end = new[jnp.maximum(jnp.isfinite(new).sum() - 1, 0)]
        return number + 1, weights, losses.at[number].set(new), ends.at[number].set(end)

    losses, ends = jnp.full(shape, jnp.nan), jnp.zeros(passes)
    begin = jnp.int32(0), weights, losses, ends
    _, weights, losses, _ = jax.lax.while_loop(go_on, one_pass, begin)
    return weights, losses.ravel()


def _mixed(personal: Adapter, received: Adapter, weights: Adapter) -> Adapter:
    between = lambda x, y, w: x + w * (y - x)
    mixed = {
        path: jax.tree.map(between, personal[path], received[path], w)
        for path, w in weights.items()
    }
    return received | mixed
