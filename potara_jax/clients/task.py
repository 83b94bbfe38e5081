"""What a client wants of a model: its outputs, its loss, and when it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Adapter, Apply, Array, Params
from potara_jax.data.federation import Batch
from potara_jax.data.tokens import Choices, Packed
from potara_jax.models.llama import Text


class Task(NamedTuple):
    """Pure functions of `(base, adapter, batch)`, each with one value an example.

    `logits`: `[B, K]`. `loss`: `[B]`, float32. `judge`: the loss again, and whether the
      model is right, `[B]` each, float32 in [0, 1], of one reading.
    `inputs`: what every adapted module reads, `{path: [T, D]}`, or None.
    `features`: the last hidden features `[B, F]`, or None.
    `add(base, deltas)`: the base with an adapter's dense deltas `{path: [..., D, K]}`
      in its kernels, or None.
    `again(change)`: the task of a changed model, `change(apply)`.
    `sequences`: whether `logits` are `[B, A, K]`, of `A` labels an example.
    """

    logits: Callable[[Params, Adapter, Batch], Array]
    loss: Callable[[Params, Adapter, Batch], Array]
    judge: Callable[[Params, Adapter, Batch], tuple[Array, Array]]
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
        names = ("logits", "loss", "judge", "inputs", "features")
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
        return _cross_entropy(logits(base, adapter, batch), batch.labels)

    def judge(base, adapter, batch):
        outputs = logits(base, adapter, batch)
        right = jnp.argmax(outputs, -1) == batch.labels
        return _cross_entropy(outputs, batch.labels), right.astype(jnp.float32)

    return Task(logits, loss, judge)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


# --- Texts ---------------------------------------------------------------------------


def answering(apply: Apply, *, normalise: bool = False) -> Task:
    """Answers to prompts, of `apply(base, adapter, text) -> [R, A, V]`.

    Batches are `(choices, labels)`: prompts and options as `data.tokens.encode` gives
    them, and the tokens `[B, A]` of the right ones, -1 where there is none. The loss is
    the cross-entropy of the right answer, a mean over its tokens. An answer is right
    where no other option is likelier (normalise: a token), and where there is only one
    option, if every token of it is the likeliest: greedy decoding then writes it. A
    model that judges reads a prompt once, with all options behind it.
    """

    def read(base, adapter, text: Text) -> Array:
        return apply(base, adapter, text).astype(jnp.float32)

    def logits(base, adapter, batch) -> Array:
        return read(base, adapter, answered(batch.inputs, _right(batch.inputs)))

    def loss(base, adapter, batch) -> Array:
        return _mean_loss(logits(base, adapter, batch), batch.labels)

    def judge(base, adapter, batch) -> tuple[Array, Array]:
        choices = batch.inputs
        answers = choices.answers
        alone = answers.shape[1] == 1
        text = answered(choices, answers[:, 0]) if alone else side_by_side(choices)
        outputs = read(base, adapter, text)
        outputs = outputs.reshape(*answers.shape, outputs.shape[-1])
        found = _log_likelihoods(outputs, answers)
        loss = _mean(_pick(found, choices.gold), batch.labels)
        return loss, _is_right(outputs, found, choices, normalise)

    again = lambda change: answering(change(apply), normalise=normalise)
    return Task(logits, loss, judge, again=again, sequences=True)


def reading(apply: Apply) -> Callable[[Params, Adapter, Packed], Array]:
    """The loss `[B]` of rows of texts: a mean over the tokens that are asked for."""

    def loss(base, adapter, rows: Packed) -> Array:
        text = Text(rows.tokens, rows.at, rows.segment)
        return _mean_loss(apply(base, adapter, text), rows.answers)

    return loss


def answered(choices: Choices, answers: Array) -> Text:
    """The prompts, with an answer `[B, A]` each behind them."""
    length, most = choices.prompt.shape[-1], answers.shape[-1]
    first = choices.count[:, None]
    behind = jnp.arange(length) - first
    written = jnp.take_along_axis(answers, jnp.clip(behind, 0, most - 1), -1)
    own = (behind >= 0) & (behind < most) & (written >= 0)
    at = jnp.minimum(first - 1 + jnp.arange(most), length - 1)
    return Text(jnp.where(own, written, choices.prompt), at)


def side_by_side(choices: Choices) -> Text:
    """The prompts, with all their options behind them, which do not see each other.

    `at` is `[B, O * A]`.
    """
    rows, options, most = choices.answers.shape
    length, read = choices.prompt.shape[-1], most - 1  # nothing is asked after the last
    behind = jnp.maximum(choices.answers[..., :-1], 0).reshape(rows, -1)
    prompt = jnp.where(jnp.arange(length) < choices.count[:, None], 0, -1)
    number = jnp.repeat(jnp.arange(1, options + 1), read)
    at = length + read * jnp.arange(options)[:, None] + jnp.arange(read)
    first = jnp.broadcast_to(choices.count[:, None, None] - 1, (rows, options, 1))
    at = jnp.concatenate([first, jnp.broadcast_to(at, (rows, *at.shape))], -1)
    return Text(
        jnp.concatenate([choices.prompt, behind], 1),
        at.reshape(rows, -1),
        jnp.concatenate([prompt, jnp.broadcast_to(number, behind.shape)], 1),
    )


def _pick(x: Array, option: Array) -> Array:
    """Of `[B, O, ...]`, each example's option."""
    return jax.vmap(lambda own, number: own[number])(x, option)


def _right(choices: Choices) -> Array:
    return _pick(choices.answers, choices.gold)


def _is_right(logits, found, choices: Choices, normalise: bool) -> Array:
    """Whether the right option is chosen, or written where it is alone, `[B]`.

    found: the log-likelihoods of all tokens, `[B, O, A]`.
    """
    answers = choices.answers
    written = _written(logits[:, 0], answers[:, 0])
    if answers.shape[1] == 1:
        return written
    likely = _scores(found, answers, normalise)
    chosen = (jnp.argmax(likely, -1) == choices.gold).astype(jnp.float32)
    alone = (answers >= 0).any(-1).sum(-1) == 1
    return jnp.where(alone, written, chosen)


def _mean_loss(logits: Array, answers: Array) -> Array:
    """The cross-entropy of answers `[..., A]`, a mean over their tokens."""
    return _mean(_log_likelihoods(logits, answers), answers)


def _mean(found: Array, answers: Array) -> Array:
    return -found.sum(-1) / jnp.maximum(1, (answers >= 0).sum(-1))


def _log_likelihoods(logits: Array, answers: Array) -> Array:
    """Of every token of an answer, `[..., A]`; zero where there is none."""
    log_p = jax.nn.log_softmax(logits)
    index = jnp.maximum(answers, 0)[..., None]
    chosen = jnp.take_along_axis(log_p, index, -1)[..., 0]
    return jnp.where(answers >= 0, chosen, 0)


def _scores(found, answers, normalise: bool) -> Array:
    """An option's log-likelihood, whole or a token; of none, minus infinity."""
    real = (answers >= 0).sum(-1)
    total = found.sum(-1)
    score = total / jnp.maximum(1, real) if normalise else total
    return jnp.where(real > 0, score, -jnp.inf)


def _written(logits, answers) -> Array:
    """Whether greedy decoding gives an answer."""
    right = (jnp.argmax(logits, -1) == answers) | (answers < 0)
    return right.all(-1).astype(jnp.float32)
