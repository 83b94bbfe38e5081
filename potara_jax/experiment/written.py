"""What the clients' models write when there are no options to choose from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.data.federation import Federation
from potara_jax.evaluation.metrics import in_parts
from potara_jax.evaluation.wording import METRICS
from potara_jax.experiment.context import Context
from potara_jax.experiment.methods import KEPT
from potara_jax.experiment.problem import Writer
from potara_jax.experiment.rows import TUNED, Row

_SHOWN = ("base", TUNED, *KEPT)
_SAMPLES = 2
_WRITTEN_AT_ONCE = 32  # each needs a cache: 65 MB for a 3B model that reads 570 tokens


class Prompts(NamedTuple):
    """A client's free-form test examples, repeated to length `K`.

    Attributes:
      prompts: tokens, `[K, L]`.
      counts: the numbers of the prompts' tokens, `[K]`.
      answers: tokens, `[K, A]`, padded with -1.
      weight: `[K]`, zero for a repetition.
    """

    prompts: np.ndarray
    counts: np.ndarray
    answers: np.ndarray
    weight: np.ndarray


def written(at: Context, rows: list[Row]) -> list[dict[str, Any]]:
    """One record per method: means over clients of the metrics, and some answers."""
    writer = at.problem.writer
    if writer is None:
        return []
    prompts = _prompts(at.federation)
    shown = [row for row in rows if row.name in _SHOWN and prompts]
    return [_record(at, writer, row, prompts) for row in shown]


def _prompts(federation: Federation) -> dict[int, Prompts]:
    """By client, of those that have any; all repeated to the largest number."""
    pool, (index, weight) = federation.pool.inputs, map(np.asarray, federation.test)
    answers, counts = np.asarray(pool.answers), np.asarray(pool.count)
    free_form = (answers >= 0).any(-1).sum(-1) == 1
    weight = weight * free_form[index]
    largest = (weight > 0).sum(1).max()
    length = counts[index[weight > 0]].max(initial=0)
    tokens = np.asarray(pool.prompt)[:, :length]

    def one(index: np.ndarray, weight: np.ndarray) -> Prompts:
        real = np.flatnonzero(weight)
        places = index[np.resize(real, largest)]
        weights = np.pad(weight[real], (0, largest - len(real)))
        return Prompts(tokens[places], counts[places], answers[places, 0], weights)

    clients = enumerate(zip(index, weight, strict=True))
    return {client: one(*tests) for client, tests in clients if tests[1].any()}


def _record(
    at: Context, writer: Writer, row: Row, prompts: dict[int, Prompts]
) -> dict[str, Any]:
    pairs = {c: _pairs(at, writer, row, c, some) for c, some in prompts.items()}
    scores = {name: _mean(metric, pairs, prompts) for name, metric in METRICS.items()}
    samples = [
        {"client": c, "prompt": _text(writer, prompts[c], i), "written": w, "right": r}
        for c, answers in pairs.items()
        for i, (w, r) in enumerate(answers[:_SAMPLES])
    ]
    return {"method": row.name, **at.cell._asdict(), **scores, "samples": samples}


def _text(writer: Writer, prompts: Prompts, number: int) -> str:
    """One of the prompts, as text."""
    tokens = prompts.prompts[number][: prompts.counts[number]]
    return writer.text(map(int, tokens)).strip()


def _pairs(
    at: Context, writer: Writer, row: Row, client: int, some: Prompts
) -> list[tuple[str, str]]:
    """What a client's model writes, and the right answer, for each example."""
    adapter = jax.tree.map(lambda x: x[client], row.models)
    program = at.programs.once("write", lambda: writing(writer))
    prompts, counts = jnp.asarray(some.prompts), jnp.asarray(some.counts)
    length = some.answers.shape[-1]
    tokens = np.asarray(program(at.problem.base, adapter, prompts, counts, length))
    real = np.count_nonzero(some.weight)
    both = zip(tokens[:real], some.answers[:real], strict=True)
    return [(_answer(writer, x), _answer(writer, right)) for x, right in both]


def _answer(writer: Writer, tokens: np.ndarray) -> str:
    """The text of tokens up to the end of the answer."""
    ends = writer.stop, -1
    return writer.text(takewhile(lambda x: x not in ends, map(int, tokens))).strip()


def writing(writer: Writer) -> Callable[..., jax.Array]:
    """One client's answers to prompts `[K, L]`, computed a few at a time."""

    def write(base: Any, adapter: Any, prompts: Any, counts: Any, length: int) -> Any:
        def some(index: jax.Array) -> Any:
            return writer.write(base, adapter, prompts[index], counts[index], length)

        return in_parts(some, jnp.arange(len(counts)), max_size=_WRITTEN_AT_ONCE)

    return jax.jit(write, static_argnums=4)


def _mean(
    metric: Callable[[str, str], float],
    pairs: dict[int, list[tuple[str, str]]],
    prompts: dict[int, Prompts],
) -> float:
    """The mean over clients of their weighted means."""

    def one(client: int) -> float:
        weight = prompts[client].weight[: len(pairs[client])]
        scores = [metric(*pair) for pair in pairs[client]]
        return float(weight @ np.array(scores) / weight.sum())

    return float(np.mean([one(client) for client in prompts]))
