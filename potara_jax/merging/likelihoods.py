"""What is differentiated for a Fisher: a model's log-probabilities of labels.

A *likelihood* gives, for one example, `Q` log-probabilities and their weights:

    empirical      the data's label                     Q = 1
                   (`empirical_of_loss`: exp(-loss), for a task without logits)
    exact          every class, weighted by its probability under the model (Q = K):
                   the Fisher itself, no label is used
    sampled        labels drawn from the model, with one noise for both models

An example of many labels (`logits [L, K]`, `labels [L]`: a sequence) has one
log-probability, summed over its labels; negative labels are left out.
Kunstner et al. 2019 (arXiv 1905.12558) on how the empirical Fisher differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array, Params

Example = Any
Logits = Callable[[Params, Adapter, Example], Array]
Loss = Callable[[Params, Adapter, Example], Array]
Likelihood = Callable[[Params, Adapter, Example, Array], tuple[Array, Array]]


def empirical(logits: Logits) -> Likelihood:
    """The log-likelihood of the data's labels. Examples are `(inputs, labels)`."""

    def likelihood(
        base: Params, adapter: Adapter, example: Example, key: Array
    ) -> tuple[Array, Array]:
        del key
        log_p = _log_softmax(logits(base, adapter, example))
        return _of_labels(log_p, example[1], example[1])[None], jnp.ones(1)

    return likelihood


def exact(logits: Logits) -> Likelihood:
    """All classes, weighted by the model's probabilities; one label an example."""

    def likelihood(
        base: Params, adapter: Adapter, example: Example, key: Array
    ) -> tuple[Array, Array]:
        del key
        log_p = _log_softmax(logits(base, adapter, example))
        if log_p.ndim != 1:
            raise ValueError(
                "the exact Fisher needs one label an example; sequences need sampled"
            )
        return log_p, jnp.exp(log_p)

    return likelihood


def sampled(logits: Logits, *, draws: int = 1) -> Likelihood:
    """Labels drawn from the model; one key for both models couples their draws.

    Every answer token of a sequence is drawn given the data's tokens before it.

    Args:
      logits: `(base, adapter, examples) -> [N, ..., K]`.
      draws: the number of labels drawn for a sample.
    """

    def likelihood(
        base: Params, adapter: Adapter, example: Example, key: Array
    ) -> tuple[Array, Array]:
        log_p = _log_softmax(logits(base, adapter, example))
        noise = jax.random.gumbel(key, (draws, *log_p.shape))
        drawn = jnp.argmax(jax.lax.stop_gradient(log_p) + noise, axis=-1)
        answers = example[1] if log_p.ndim > 1 else jnp.zeros((), jnp.int32)
        values = jax.vmap(lambda labels: _of_labels(log_p, labels, answers))(drawn)
        return values, jnp.full(draws, 1 / draws)

    return likelihood


def empirical_of_loss(loss: Loss) -> Likelihood:
    """`exp(-loss)` of the data, for a task without logits: half a squared error, say.

    The empirical Fisher is then the second moment of the gradients of the loss: the
    generalised Bayesian view of a loss (Bissiri et al. 2016, arXiv 1306.6430).

    Args:
      loss: `(base, adapter, batch) -> [B]`, of a batch of examples.
    """
    loss_of_one = one_example(loss)

    def likelihood(
        base: Params, adapter: Adapter, example: Example, key: Array
    ) -> tuple[Array, Array]:
        del key
        value = -loss_of_one(base, adapter, example).astype(jnp.float32)
        return value[None], jnp.ones(1)

    return likelihood


def one_example(
    of_batch: Callable[[Params, Adapter, Example], Array],
) -> Callable[[Params, Adapter, Example], Array]:
    """A function of one example, such as its logits, from that of a batch."""

    def one(base: Params, adapter: Adapter, example: Example) -> Array:
        return of_batch(base, adapter, jax.tree.map(lambda x: x[None], example))[0]

    return one


def _log_softmax(logits: Array) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))


def _of_labels(log_p: Array, labels: Array, answers: Array) -> Array:
    """The log-probability of labels, summed where there is an answer."""
    index = jnp.maximum(labels, 0)[..., None]
    chosen = jnp.take_along_axis(log_p, index, -1)[..., 0]
    return jnp.where(answers >= 0, chosen, 0).sum()


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "empirical": empirical,
    "exact": exact,
    "sampled": sampled,
}
