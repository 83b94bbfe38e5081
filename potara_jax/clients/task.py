"""What a client wants of a model: its outputs, its loss, and when it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Adapter, Apply, Array, Params
from potara_jax.data.federation import Batch
from potara_jax.data.tokens import Choices
from potara_jax.models.llama import Text


class Task(NamedTuple):
    """Pure functions of `(base, adapter, batch)`, each with one value an example.

    `logits`: `[B, K]`. `loss`: `[B]`, float32. `correct`: `[B]`, float32 in [0, 1].
    `inputs`: what every adapted module reads, `{path: [T, D]}`, or None.
    `features`: the last hidden features `[B, F]`, or None.
    `add(base, deltas)`: the base with an adapter's dense deltas `{path: [..., D, K]}`
      in its kernels, or None.
    `again(change)`: the task of a changed model, `change(apply)`.
    `sequences`: whether `logits` are `[B, A, K]`, of `A` labels an example.
    """

    logits: Callable[[Params, Adapter, Batch], Array]
    loss: Callable[[Params, Adapter, Batch], Array]
    correct: Callable[[Params, Adapter, Batch], Array]
    inputs: Callable[[Params, Adapter, Batch], dict[str, Array]] | None = None
    features: Callable[[Params, Adapter, Batch], Array] | None = None
    add: Callable[[Params, dict[str, Array]], Params] | None = None
    again: Callable[[Callable[[Apply], Apply]], Task] | None = None
    sequences: bool = False

    def objective(self, base: Params) -> Callable[[Adapter, Batch], Array]:
        """The mean loss of a batch, as a function of the adapter."""
        return lambda adapter, batch: self.loss(base, adapter, batch).mean()

    def of(self, adapter: Callable[[Any], Adapter]) -> Task:
        """The task on models of another kind, by the adapter that each stands for."""
        on = lambda fn: (
            fn and (lambda base, model, batch: fn(base, adapter(model), batch))
        )
        names = ("logits", "loss", "correct", "inputs", "features")
        return self._replace(**{name: on(getattr(self, name)) for name in names})


def classification(
    apply: Apply,
    read: Apply | None = None,
    features: Apply | None = None,
    add: Callable[[Params, dict[str, Array]], Params] | None = None,
) -> Task:
    """Cross-entropy and accuracy of `apply(base, adapter, inputs) -> logits`.

    read: `(base, adapter, inputs) -> {path: [T, D]}`, as `lora.bind_inputs` gives it.
    features: `(base, adapter, inputs) -> [B, F]`, as `lora.bind_input_of` gives it;
      default: the logits. add: as `lora.bind_add` gives it.
    """
    of_inputs = lambda fn: lambda base, adapter, batch: fn(base, adapter, batch.inputs)

    def logits(base, adapter, batch):
        return apply(base, adapter, batch.inputs).astype(jnp.float32)

    return of_logits(logits)._replace(
        inputs=of_inputs(read) if read else None,
        features=of_inputs(features) if features else logits,
        add=add,
        again=lambda change: classification(change(apply)),
    )


def of_logits(logits: Callable[[Params, Adapter, Batch], Array]) -> Task:
    """Cross-entropy and accuracy of `logits(base, adapter, batch) -> [B, K]`."""

    def loss(base, adapter, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(base, adapter, batch), batch.labels
        )

    def correct(base, adapter, batch):
        predicted = jnp.argmax(logits(base, adapter, batch), -1)
        return (predicted == batch.labels).astype(jnp.float32)

    return Task(logits, loss, correct)


# --- Texts ---------------------------------------------------------------------------


def answering(apply: Apply, *, normalise: bool = False) -> Task:
    """Answers to prompts, of `apply(base, adapter, text) -> [R, A, V]`.

    Batches are `(choices, labels)`: `choices` `[B, O, ...]` as `data.tokens` encodes
    them, and the tokens `[B, A]` of the right ones, -1 where there is none. The loss is
    the cross-entropy of the right answer, a mean over its tokens. An answer is correct
    where no other option is likelier (normalise: a token), and where there is only one
    option, if every token of it is the likeliest: greedy decoding then writes it.
    """

    def read(base, adapter, choices) -> Array:
        text = Text(choices.tokens, choices.at, choices.segment)
        return apply(base, adapter, text).astype(jnp.float32)

    def logits(base, adapter, batch) -> Array:
        return read(base, adapter, _right(batch.inputs))

    def loss(base, adapter, batch) -> Array:
        found = _log_likelihoods(logits(base, adapter, batch), batch.labels)
        return -found.sum(-1) / jnp.maximum(1, (batch.labels >= 0).sum(-1))

    def correct(base, adapter, batch) -> Array:
        choices, options = batch.inputs, batch.inputs.tokens.shape[1]
        rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), choices[:3])
        rows = Choices(*rows, choices.gold)
        outputs = read(base, adapter, rows)
        exact = _written(outputs, rows.answers).reshape(-1, options)
        if options == 1:
            return exact[:, 0]
        likely = _scores(outputs, rows.answers, normalise).reshape(-1, options)
        chosen = (jnp.argmax(likely, -1) == choices.gold).astype(jnp.float32)
        alone = (choices.answers >= 0).any(-1).sum(-1) == 1
        return jnp.where(alone, exact[:, 0], chosen)

    again = lambda change: answering(change(apply), normalise=normalise)
    return Task(logits, loss, correct, again=again, sequences=True)


def _right(choices: Choices) -> Choices:
    """The right options alone, `[B, ...]`."""
    gold = choices.gold[:, None, None]
    pick = lambda x: jnp.take_along_axis(x, gold, 1)[:, 0]
    right = jax.tree.map(pick, choices._replace(gold=None))
    return right._replace(gold=choices.gold)


def _log_likelihoods(logits: Array, answers: Array) -> Array:
    """Of every token of an answer, `[..., A]`; zero where there is none."""
    log_p = jax.nn.log_softmax(logits)
    index = jnp.maximum(answers, 0)[..., None]
    chosen = jnp.take_along_axis(log_p, index, -1)[..., 0]
    return jnp.where(answers >= 0, chosen, 0)


def _scores(logits, answers, normalise: bool) -> Array:
    """An option's log-likelihood, whole or a token; of none, minus infinity."""
    real = (answers >= 0).sum(-1)
    total = _log_likelihoods(logits, answers).sum(-1)
    score = total / jnp.maximum(1, real) if normalise else total
    return jnp.where(real > 0, score, -jnp.inf)


def _written(logits, answers) -> Array:
    """Whether greedy decoding gives an answer."""
    right = (jnp.argmax(logits, -1) == answers) | (answers < 0)
    return right.all(-1).astype(jnp.float32)
