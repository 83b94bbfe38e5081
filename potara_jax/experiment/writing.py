"""What the clients' models write, where there is nothing to choose from."""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.evaluation.wording import METRICS
from potara_jax.experiment import recipes
from potara_jax.experiment.context import Context
from potara_jax.experiment.methods import Method

_SHOWN = ("base", "federated + fine-tuning", *recipes.KEPT)
_SAMPLES = 2


class Asked(NamedTuple):
    """A client's test examples that have to be written, as often as they fill `K`.

    `prompts` `[K, L]` of `counts` `[K]` tokens; `right` `[K, A]`, -1 behind; `weight`
    `[K]`, zero where an example is there again.
    """

    prompts: np.ndarray
    counts: np.ndarray
    right: np.ndarray
    weight: np.ndarray


def written(at: Context, methods: list[Method]) -> list[dict]:
    """A record a method: means over clients of the metrics, and some answers."""
    if at.programs.write is None:
        return []
    asked = _asked(at.federation)
    return [_record(at, m, asked) for m in methods if m.name in _SHOWN and asked]


def _asked(federation) -> dict[int, Asked]:
    """By client, of those that have any; all padded to the most of them."""
    pool, (index, weight) = federation.pool.inputs, map(np.asarray, federation.test)
    answers, counts = np.asarray(pool.answers), np.asarray(pool.count)
    alone = (answers >= 0).any(-1).sum(-1) == 1
    weight = weight * alone[index]
    most = (weight > 0).sum(1).max()
    length = counts[index[weight > 0]].max(initial=0)
    prompts = np.asarray(pool.prompt)[:, :length]

    def one(index, weight) -> Asked:
        real = np.flatnonzero(weight)
        own = index[np.resize(real, most)]
        weights = np.pad(weight[real], (0, most - len(real)))
        return Asked(prompts[own], counts[own], answers[own, 0], weights)

    found = zip(index, weight, strict=True)
    return {client: one(*own) for client, own in enumerate(found) if own[1].any()}


def _record(at: Context, method: Method, asked: dict[int, Asked]) -> dict:
    pairs = {client: _pairs(at, method, client, own) for client, own in asked.items()}
    scores = {name: _mean(metric, pairs, asked) for name, metric in METRICS.items()}
    text = at.problem.writer.text
    read = lambda own, i: text(map(int, own.prompts[i][: own.counts[i]])).strip()
    samples = [
        {"client": c, "prompt": read(asked[c], i), "written": w, "right": r}
        for c, own in pairs.items()
        for i, (w, r) in enumerate(own[:_SAMPLES])
    ]
    return {"method": method.name, **at.cell._asdict(), **scores, "samples": samples}


def _pairs(at: Context, method: Method, client: int, asked: Asked):
    """What a client's model writes, and what is right, example by example."""
    own = jax.tree.map(lambda x: x[client], method.adapters)
    how = jnp.asarray(asked.prompts), jnp.asarray(asked.counts), asked.right.shape[-1]
    found = np.asarray(at.programs.write(at.problem.base, own, *how))
    _, text, stop = at.problem.writer
    ended = partial(itertools.takewhile, lambda token: token not in (stop, -1))
    say = lambda tokens: text(ended(map(int, tokens))).strip()
    real = np.count_nonzero(asked.weight)
    both = zip(found[:real], asked.right[:real], strict=True)
    return [(say(one), say(right)) for one, right in both]


def _mean(metric, pairs, asked: dict[int, Asked]) -> float:
    """The mean over clients of their weighted means."""

    def one(client: int) -> float:
        weight = asked[client].weight[: len(pairs[client])]
        scores = [metric(*pair) for pair in pairs[client]]
        return float(weight @ np.array(scores) / weight.sum())

    return float(np.mean([one(client) for client in asked]))
