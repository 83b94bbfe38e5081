"""Every merge, every way to weigh, and every space, under the name it has everywhere.

Tables, the command line and code name them by these keys:

    merging.METHODS["ties"].make(density=0.3)            -> Merge
    merging.ESTIMATORS["hermite"].make(task.loss)       -> Estimator
    merging.SPACES["core"]

An `Entry` says what it does in one line, and where it was published.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from potara_jax.merging import estimators, merges
from potara_jax.merging.ensemble import ensemble


class Entry(NamedTuple):
    """A method: `make(...)`, what it `needs` first, a summary and a reference.

    `needs`: `nothing`, or what `make`'s positional argument is: the `loss` of examples,
    their `logits`, a `likelihood`, the `grams` of the inputs, or the model's `apply`.
    `spaces`: where it merges, the best first.
    """

    make: Callable[..., Any]
    needs: str
    spaces: tuple[str, ...]
    summary: str
    reference: str

    @property
    def options(self) -> dict[str, Any]:
        """Options of `make` with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_SUBSPACE = ("core",)

METHODS: dict[str, Entry] = {
    "linear": Entry(
        merges.linear,
        "nothing",
        merges.ANY,
        "weighted mean; uniform soup at equal weights",
        "arXiv 2203.05482",
    ),
    "task_arithmetic": Entry(
        merges.task_arithmetic,
        "nothing",
        merges.ANY,
        "scaled sum of the task vectors",
        "arXiv 2212.04089",
    ),
    "ties": Entry(
        merges.ties,
        "nothing",
        merges.DENSE,
        "trim, elect signs, average what agrees; KnOTS-TIES in knots",
        "arXiv 2306.01708",
    ),
    "dare": Entry(
        merges.dare,
        "nothing",
        merges.DENSE,
        "drop entries at random, rescale, sum",
        "arXiv 2311.03099",
    ),
    "slerp": Entry(
        merges.slerp,
        "nothing",
        merges.DENSE,
        "interpolate two adapters on the sphere",
        "Shoemake 1985",
    ),
    "tsv": Entry(
        merges.tsv,
        "nothing",
        _SUBSPACE,
        "singular vectors orthogonal across adapters (TSV-M)",
        "arXiv 2412.00081",
    ),
    "iso": Entry(
        merges.iso,
        "nothing",
        _SUBSPACE,
        "sum with equal singular values (Iso-C, non-zero subspace)",
        "arXiv 2502.04959",
    ),
    "wudi": Entry(
        merges.wudi,
        "nothing",
        _SUBSPACE,
        "least interference with each delta's subspace; a weight counts with ridge",
        "arXiv 2503.08099",
    ),
    "regmean": Entry(
        merges.regmean,
        "grams",
        ("knots",),
        "least squares of the outputs on the samples' inputs",
        "arXiv 2212.09849",
    ),
}

ESTIMATORS: dict[str, Entry] = {
    "constant": Entry(
        estimators.constant, "nothing", merges.ANY, "a given weight", "-"
    ),
    "potara": Entry(
        estimators.potara,
        "likelihood",
        merges.ANY,
        "least posterior variance, closed form",
        "arXiv 2602.18658",
    ),
    "fisher": Entry(
        estimators.fisher,
        "likelihood",
        ("core", "factor", "knots", "aligned"),
        "each parameter by its share of Fisher information",
        "arXiv 2111.09832",
    ),
    "hermite": Entry(
        estimators.hermite,
        "loss",
        merges.ANY,
        "minimum of the cubic through both ends of the segment",
        "this project",
    ),
    "hermite_pooled": Entry(
        estimators.hermite_pooled,
        "loss",
        merges.ANY,
        "one weight: the minimum of all clients' mean cubic",
        "this project",
    ),
    "hermite_bayes": Entry(
        estimators.hermite_bayes,
        "loss",
        merges.ANY,
        "posterior mean under a prior from all clients' cubics",
        "this project",
    ),
    "gauss_newton": Entry(
        estimators.gauss_newton,
        "logits",
        merges.ANY,
        "Newton steps over a weight a module, drawn to 1/2",
        "this project",
    ),
    "grid": Entry(
        estimators.grid, "loss", merges.ANY, "the best of a grid on the samples", "-"
    ),
    "grid_pooled": Entry(
        estimators.grid_pooled,
        "loss",
        merges.ANY,
        "one weight: the best of a grid on all clients' samples",
        "-",
    ),
    "learned": Entry(
        estimators.learned,
        "loss",
        merges.ANY,
        "gradient descent on the samples, a weight a client or module",
        "arXiv 2310.02575",
    ),
    "soup": Entry(
        estimators.soup,
        "loss",
        merges.ANY,
        "the better model, or the mean of both (greedy soup)",
        "arXiv 2203.05482",
    ),
    "lorahub": Entry(
        estimators.lorahub,
        "loss",
        ("factor",),
        "free weights of the factors, without gradients",
        "arXiv 2307.13269",
    ),
}

CONTROLS: dict[str, Entry] = {
    "ensemble": Entry(
        ensemble,
        "apply",
        (),
        "mixture of both models' predictions; twice the inference",
        "control",
    ),
}
