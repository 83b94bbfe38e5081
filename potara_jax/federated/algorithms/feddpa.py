"""FedDPA: a federated and a local LoRA, mixed for each input (Yang et al. 2024).

In training (FedDPA-T) the local one learns beside the federated one, which stays fixed:

    y = x W + s ((1 - c) x a_G b_G + c x a_L b_L)

and the federated one as in FedIT. For a test input, `c` is its similarity to
`anchors`, a few of the client's training examples:

    c(x) = largest * mean_s cos(e(x), e(x_s)),     e: last features, local adapter

A client that has trained no local one yet has the federated one in both places
(arXiv 2403.19211, eqs. 7 to 9; FedDPA-F is the same mixture of FedIT's model and the
same fine-tuned, without that training). The released code gives `c` to the federated
adapter instead: `to_local=False`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array, Params
from potara_jax.clients.task import Task, of_logits
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, Ragged, take
from potara_jax.federated.aggregation import select
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import mix
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.needs import needed
from potara_jax.federated.registry import algorithm


@algorithm(
    "feddpa_t",
    "Yang et al. 2024, arXiv 2403.19211",
    "a federated and a local adapter, mixed for each input",
    differs="clients weigh by their examples, in the released code alike",
)
def feddpa_t(
    task: Task,
    train: Train,
    *,
    share: float = 0.5,
    anchors: int = 5,
    largest: float = 0.5,
    to_local: bool = True,
) -> Algorithm:
    """FedDPA-T; `share` is the local adapter's in training. Round 0 is FedIT's."""

    def client(shared, received, state, examples, key):
        loss, first = task.objective(shared.base), shared.round == 0
        mixed = lambda local, batch: loss(mix(local, received, share), batch)
        local, before = train(mixed, state["local"], shared.pool, examples, key)
        trained = {"local": local, "begun": jnp.array(True)}
        before = jnp.where(first, jnp.nan, before)
        common, losses = train(loss, received, shared.pool, examples, key)
        state = select(first, state, trained)
        return Update(state, common, jnp.append(before, losses), received)

    def personalise(shared, received, state, examples):
        near = take(shared.pool, anchor_index(examples, anchors))
        local = select(state["begun"], state["local"], received)
        return {"federated": received, "local": local, "anchors": near}

    return fedit(task, train)._replace(
        name="FedDPA-T",
        init_client=lambda adapter, client, key: {
            "local": adapter,
            "begun": jnp.array(False),
        },
        client=client,
        personalise=personalise,
        personal=True,
        predict=lambda task: instance_wise(task, largest=largest, to_local=to_local),
    )


def anchor_index(examples: Ragged, number: int) -> Array:
    """The client's first `number` examples, again from the first where it has fewer."""
    return examples.index[jnp.arange(number) % examples.count]


def instance_wise(task: Task, *, largest: float = 0.5, to_local: bool = True) -> Task:
    """A task on `{"federated", "local", "anchors"}`, both adapters mixed by input.

    Args:
      task: on adapters.
      largest: the largest share.
      to_local: whether the share is the local adapter's.

    Raises:
      ValueError: the task has no features or no logits.
    """
    features = needed(task.features, "FedDPA", "features of an input")
    outputs = needed(task.logits, "FedDPA", "logits")

    def logits(base: Params, model: Any, batch: Batch) -> Array:
        near = features(base, model["local"], model["anchors"])
        of = features(base, model["local"], batch)
        close = (_unit(of) @ _unit(near).T).mean(-1)
        share = largest * close if to_local else 1 - largest * close

        def one(example: Batch, share: Array) -> Array:
            mixed = mix(model["local"], model["federated"], share)
            alone = jax.tree.map(lambda x: x[None], example)
            return outputs(base, mixed, Batch(*alone))[0]

        return jax.vmap(one)(batch, share)

    return of_logits(logits)


def _unit(rows: Array) -> Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
