"""Merging LoRA adapters: curvature, weights in closed form, and merges.

`merge` makes one adapter out of several; `personalise` does it for all clients at
once, with weights from their samples. `registry.merges()`, `registry.weights()` and
`SPACES` list the choices, each with a line on what it does and where it was published.
"""

from potara_jax.merging import label_prior, registry
from potara_jax.merging.closed_form import (
    bias_aware_weight,
    potara_weight,
    sensitivity,
)
from potara_jax.merging.combining import merge, pair, truncate
from potara_jax.merging.curvature import Curvature
from potara_jax.merging.damping import evidence, harmonic, laplace, quantile, relative
from potara_jax.merging.ensemble import ensemble
from potara_jax.merging.interface import Client, Estimator, Measured, Merge, Place
from potara_jax.merging.intervals import bootstrap
from potara_jax.merging.likelihoods import (
    empirical,
    empirical_of_loss,
    exact,
    one_example,
    sampled,
)
from potara_jax.merging.merges.dare import dare
from potara_jax.merging.merges.iso import iso
from potara_jax.merging.merges.linear import linear
from potara_jax.merging.merges.regmean import regmean
from potara_jax.merging.merges.slerp import slerp
from potara_jax.merging.merges.task_arithmetic import task_arithmetic
from potara_jax.merging.merges.ties import ties
from potara_jax.merging.merges.tsv import tsv
from potara_jax.merging.merges.wudi import wudi
from potara_jax.merging.programs import (
    Merged,
    Samples,
    combine,
    loss_curves,
    over_each,
    personalise,
    weigh,
)
from potara_jax.merging.registry import auto
from potara_jax.merging.spaces import SPACES
from potara_jax.merging.weights.constant import constant
from potara_jax.merging.weights.fisher import fisher, fisher_weight
from potara_jax.merging.weights.gauss_newton import gauss_newton
from potara_jax.merging.weights.grid import grid, grid_pooled
from potara_jax.merging.weights.hermite import hermite, hermite_bayes, hermite_pooled
from potara_jax.merging.weights.learned import learned
from potara_jax.merging.weights.lorahub import lorahub
from potara_jax.merging.weights.potara import potara
from potara_jax.merging.weights.soup import soup
from potara_jax.merging.weights.tempered import mix, tempered_bayes

__all__ = [
    "SPACES",
    "Client",
    "Curvature",
    "Estimator",
    "Measured",
    "Merge",
    "Merged",
    "Place",
    "Samples",
    "auto",
    "bias_aware_weight",
    "bootstrap",
    "combine",
    "constant",
    "dare",
    "empirical",
    "empirical_of_loss",
    "ensemble",
    "evidence",
    "exact",
    "fisher",
    "fisher_weight",
    "gauss_newton",
    "grid",
    "grid_pooled",
    "harmonic",
    "hermite",
    "hermite_bayes",
    "hermite_pooled",
    "iso",
    "label_prior",
    "laplace",
    "learned",
    "linear",
    "lorahub",
    "loss_curves",
    "merge",
    "mix",
    "one_example",
    "over_each",
    "pair",
    "personalise",
    "potara",
    "potara_weight",
    "quantile",
    "registry",
    "regmean",
    "relative",
    "sampled",
    "sensitivity",
    "slerp",
    "soup",
    "task_arithmetic",
    "tempered_bayes",
    "ties",
    "truncate",
    "tsv",
    "weigh",
    "wudi",
]
