"""What the clients' models write, where there is nothing to choose from."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import recipes
from experiments.context import Context
from experiments.methods import Method
from potara_jax.evaluation.wording import METRICS

_SHOWN = ("base", "federated + fine-tuning", *recipes.KEPT)
_SAMPLES = 2


class Asked(NamedTuple):
    """The test examples that have to be written.

    `prompts` `[C, M, L]` of `counts` `[C, M]` tokens; `right` `[C, M, A]`, -1 behind;
    `weight` `[C, M]`, zero for examples that are none of these.
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
    if not asked.weight.any():
        return []
    return [_record(at, m, asked) for m in methods if m.name in _SHOWN]


def _asked(federation) -> Asked:
    pool, (index, weight) = federation.pool.inputs, map(np.asarray, federation.test)
    rows = lambda x: np.asarray(x)[index]
    alone = (rows(pool.answers) >= 0).any(-1).sum(-1) == 1
    counts = rows(pool.count)
    prompts = rows(pool.prompt)[..., : counts.max()]
    return Asked(prompts, counts, rows(pool.answers)[:, :, 0], weight * alone)


def _record(at: Context, method: Method, asked: Asked) -> dict:
    prompts, counts = jnp.asarray(asked.prompts), jnp.asarray(asked.counts)
    how = prompts, counts, asked.right.shape[-1]
    found = np.asarray(at.programs.write(at.problem.base, method.adapters, *how))
    say = lambda tokens: at.problem.writer.text(map(int, tokens)).strip()
    places = [(int(c), int(m)) for c, m in zip(*np.nonzero(asked.weight), strict=True)]
    pairs = {at: (say(found[at]), say(_real(asked.right[at]))) for at in places}
    scores = {
        name: _mean({k: metric(*pair) for k, pair in pairs.items()}, asked.weight)
        for name, metric in METRICS.items()
    }
    samples = [
        {"client": c, "prompt": say(_read(asked, (c, m))), "written": w, "right": r}
        for (c, m), (w, r) in pairs.items()
        if m < _SAMPLES
    ]
    return {"method": method.name, **at.cell._asdict(), **scores, "samples": samples}


def _real(answer: np.ndarray) -> np.ndarray:
    return answer[answer >= 0]


def _read(asked: Asked, place) -> np.ndarray:
    return asked.prompts[place][: asked.counts[place]]


def _mean(scores: dict[tuple[int, int], float], weight: np.ndarray) -> float:
    """The mean over clients of their weighted means."""
    total = np.zeros(len(weight))
    for (client, example), score in scores.items():
        total[client] += weight[client, example] * score
    given = weight.sum(1)
    return float((total[given > 0] / given[given > 0]).mean())
