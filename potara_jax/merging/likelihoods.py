"""What is differentiated for a Fisher: a model's log-probabilities of labels.

A *likelihood* gives, for one example, `Q` log-probabilities and their weights:

    empirical      the data's label                     Q = 1
    exact          every class, weighted by its probability under the model (Q = K):
                   the Fisher itself, no label is used
    sampled        labels drawn from the model, with one noise for both models

An example of many labels (`logits [L, K]`, `labels [L]`: a sequence) has one
log-probability, summed over its labels; a negative label is no answer and left out.
Kunstner et al. 2019 (arXiv 1905.12558) on why the empirical Fisher is another thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array, Params

Example = Any
Logits = Callable[[Params, Adapter, Example], Array]
Likelihood = Callable[[Params, Adapter, Example, Array], tuple[Array, Array]]


def empirical(logits: Logits) -> Likelihood:
    """The log-likelihood of the data's labels. Examples are `(inputs, labels)`."""

    def likelihood(base, adapter, example, key):
        del key
        log_p = _log_softmax(logits(base, adapter, example))
        return _of_labels(log_p, example[1], example[1])[None], jnp.ones(1)

    return likelihood


def exact(logits: Logits) -> Likelihood:
    """All classes, weighted by the model's own probabilities; one label an example."""

    def likelihood(base, adapter, example, key):
        del key
        log_p = _log_softmax(logits(base, adapter, example))
        if log_p.ndim != 1:
            raise ValueError(
                "the exact Fisher needs one label an example; sequences need sampled"
            )
        return log_p, jnp.exp(log_p)

    return likelihood


def sampled(logits: Logits, *, draws: int = 1) -> Likelihood:
    """Labels drawn from the model, `draws` times; one key for both couples their draws.

    Every answer token of a sequence is drawn given the data's tokens before it.
    """

    def likelihood(base, adapter, example, key):
        log_p = _log_softmax(logits(base, adapter, example))
        noise = jax.random.gumbel(key, (draws, *log_p.shape))
        drawn = jnp.argmax(jax.lax.stop_gradient(log_p) + noise, axis=-1)
        answers = example[1] if log_p.ndim > 1 else jnp.zeros((), jnp.int32)
        of = jax.vmap(lambda labels: _of_labels(log_p, labels, answers))
        return of(drawn), jnp.full(draws, 1 / draws)

    return likelihood


def _log_softmax(logits) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))


def _of_labels(log_p, labels, answers) -> Array:
    """The log-probability of labels, summed where there is an answer."""
    index = jnp.maximum(labels, 0)[..., None]
    chosen = jnp.take_along_axis(log_p, index, -1)[..., 0]
    return jnp.where(answers >= 0, chosen, 0).sum()


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "empirical": empirical,
    "exact": exact,
    "sampled": sampled,
}
