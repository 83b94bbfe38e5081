"""Answers to prompts: losses of texts, and which of some options a model prefers.

Dimension letters: `B` prompts, `O` options, `L` tokens, `A` tokens of the longest
answer, `V` vocabulary, `R` rows of texts that are read at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Apply, Array, Params
from potara_jax.clients.task import ACCURACY, Task
from potara_jax.data.federation import Batch
from potara_jax.data.tokens import Choices, Packed
from potara_jax.models.llama import Text


def of_answers(apply: Apply, *, normalise: bool = False) -> Task:
    """Answers to prompts, of `apply(base, adapter, text) -> [R, A, V]`.

    Batches are `(choices, labels)`: prompts and options as `data.tokens.encode` gives
    them, and the tokens `[B, A]` of the right ones, -1 where there is none. The loss is
    the cross-entropy of the right answer, a mean over its tokens. An answer is right
    where no other option is likelier; where there is only one option, if every token of
    it is the likeliest: greedy decoding then writes it. To judge, a model reads a
    prompt once, with all options behind it.

    Args:
      apply: the adapted model's logits at the positions that a `Text` asks for.
      normalise: compare options by their mean log-likelihood a token, not by the sum.
    """

    def read(base: Params, adapter: Adapter, text: Text) -> Array:
        return apply(base, adapter, text).astype(jnp.float32)

    def logits(base: Params, adapter: Adapter, batch: Batch) -> Array:
        return read(base, adapter, answered(batch.inputs, batch.inputs.gold))

    def loss(base: Params, adapter: Adapter, batch: Batch) -> Array:
        return _mean_loss(logits(base, adapter, batch), batch.labels)

    def judge(base: Params, adapter: Adapter, batch: Batch) -> tuple[Array, Array]:
        choices = batch.inputs
        answers = choices.answers
        single = answers.shape[1] == 1
        text = answered(choices, choices.gold) if single else side_by_side(choices)
        outputs = read(base, adapter, text)
        outputs = outputs.reshape(*answers.shape, outputs.shape[-1])
        log_p = _log_likelihoods(outputs, answers)
        loss = _mean(_pick(log_p, jnp.asarray(choices.gold)), batch.labels)
        return loss, _is_right(outputs, log_p, choices, normalise)

    return Task(
        loss=loss,
        logits=logits,
        judge=judge,
        again=lambda change: of_answers(change(apply), normalise=normalise),
        sequences=True,
        metric=ACCURACY,
    )


def packed_loss(apply: Apply) -> Callable[[Params, Adapter, Packed], Array]:
    """The loss `[R]` of rows of texts: a mean over the tokens that are asked for."""

    def loss(base: Params, adapter: Adapter, rows: Packed) -> Array:
        tokens, segment, at, answers = map(jnp.asarray, rows)
        text = Text(tokens, at, segment)
        return _mean_loss(apply(base, adapter, text), answers)

    return loss


# --- Prompts and answers as texts ----------------------------------------------------


def answered(choices: Choices, option: Any) -> Text:
    """The prompts, each followed by one of its options, of the numbers `[B]`."""
    answers = _pick(jnp.asarray(choices.answers), jnp.asarray(option))
    length, longest = choices.prompt.shape[-1], answers.shape[-1]
    first = choices.count[:, None]
    behind = jnp.arange(length) - first
    written = jnp.take_along_axis(answers, jnp.clip(behind, 0, longest - 1), -1)
    in_answer = (behind >= 0) & (behind < longest) & (written >= 0)
    at = jnp.minimum(first - 1 + jnp.arange(longest), length - 1)
    tokens = jnp.where(in_answer, written, choices.prompt)
    return Text(tokens, at, hidden=_hidden_of(choices, option))


def _hidden_of(choices: Choices, option: Any) -> Array | None:
    """What is kept of the prompts, each followed by one option, if anything is."""
    if choices.hidden is None:
        return None
    length, read = choices.prompt.shape[-1], choices.answers.shape[-1] - 1
    behind = jnp.arange(length) - choices.count[:, None]
    place = length + read * jnp.asarray(option)[:, None] + jnp.minimum(behind, read - 1)
    place = jnp.where(behind < 0, jnp.arange(length), jnp.maximum(place, 0))
    return jnp.take_along_axis(choices.hidden, place[..., None], 1, mode="clip")


def side_by_side(choices: Choices) -> Text:
    """The prompts, each followed by all its options, which do not see each other.

    `at` is `[B, O * A]`.
    """
    rows, options, longest = choices.answers.shape
    length = choices.prompt.shape[-1]
    read = longest - 1  # nothing is asked after the last
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
        choices.hidden,
    )


def _pick(x: Array, option: Array) -> Array:
    """Of `[B, O, ...]`, each example's option."""
    return jax.vmap(lambda options, number: options[number])(x, option)


# --- Likelihoods of answers ----------------------------------------------------------


def _is_right(logits: Array, log_p: Array, choices: Choices, normalise: bool) -> Array:
    """Whether the right option is chosen, or written where it is the only one, `[B]`.

    log_p: the log-likelihoods of all tokens, `[B, O, A]`.
    """
    answers = jnp.asarray(choices.answers)
    written = _written(logits[:, 0], answers[:, 0])
    if answers.shape[1] == 1:
        return written
    scores = _scores(log_p, answers, normalise)
    chosen = (jnp.argmax(scores, -1) == choices.gold).astype(jnp.float32)
    single = (answers >= 0).any(-1).sum(-1) == 1
    return jnp.where(single, written, chosen)


def _mean_loss(logits: Array, answers: Array) -> Array:
    """The cross-entropy of answers `[..., A]`, a mean over their tokens."""
    return _mean(_log_likelihoods(logits, answers), answers)


def _mean(log_p: Array, answers: Array) -> Array:
    return -log_p.sum(-1) / jnp.maximum(1, (answers >= 0).sum(-1))


def _log_likelihoods(logits: Array, answers: Array) -> Array:
    """Of every token of an answer, `[..., A]`; zero where there is none."""
    log_p = jax.nn.log_softmax(logits)
    index = jnp.maximum(answers, 0)[..., None]
    chosen = jnp.take_along_axis(log_p, index, -1)[..., 0]
    return jnp.where(answers >= 0, chosen, 0)


def _scores(log_p: Array, answers: Array, normalise: bool) -> Array:
    """An option's log-likelihood, whole or a token; minus infinity without tokens."""
    real = (answers >= 0).sum(-1)
    total = log_p.sum(-1)
    score = total / jnp.maximum(1, real) if normalise else total
    return jnp.where(real > 0, score, -jnp.inf)


def _written(logits: Array, answers: Array) -> Array:
    """Whether greedy decoding gives an answer."""
    right = (jnp.argmax(logits, -1) == answers) | (answers < 0)
    return right.all(-1).astype(jnp.float32)
