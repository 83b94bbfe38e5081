"""Label shift: what a client's class shares alone change of a federated model.

A federated model has learned the class shares `q` of all clients together. For a client
whose `N` training examples have other shares, Bayes' rule changes its log-odds by a
bias of the logits (Saerens et al. 2002; Menon et al. 2021, arXiv 2007.07314),

    r_k = log((n_k + q_k) / (N + 1)) - log q_k,

with `n_k` examples of class `k`: one more example, of the federation's shares, keeps it
finite. A client's local model has learned the client's shares, so its bias is zero, and
a merge of weight `w` has the bias `w r`: where logits are linear between both models,

    w (f_F + r) + (1 - w) f_L

is a mean of two estimates of the same log-odds. With the whole `r`, the share `1 - w`
that the local model has of it would count twice.

The correction rests on test examples that have the client's training shares. Where they
may not, the calibrated loss on held-out samples decides, see `losses`.

Letters: `C` clients, `K` classes, `N` samples, `T` temperatures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.task import LOGIT_BIAS
from potara_jax.merging.curvature import real
from potara_jax.merging.curves import TEMPERATURES, cross_entropy
from potara_jax.merging.likelihoods import Logits
from potara_jax.merging.programs import Samples


class Losses(NamedTuple):
    """The loss on all clients' samples, scalars: as it is, and with the correction.

    Each is the least over the temperatures of a cross-entropy of `logits / T`.
    """

    plain: Array
    corrected: Array

    @property
    def helps(self) -> Array:
        """Whether the correction lowers the loss."""
        return self.corrected < self.plain


def class_counts(labels: Array, count: Array, *, classes: int) -> Array:
    """Examples of each class, `[C, K]`.

    Args:
      labels: `[C, N]`, from 0 to below `classes`.
      count: `[C]`; only a client's first so many labels are real.
      classes: `K`.
    """

    def one(labels: Array, count: Array) -> Array:
        held = (jnp.arange(len(labels)) < count).astype(jnp.float32)
        return jnp.zeros(classes).at[labels].add(held)

    return jax.vmap(one)(labels, count)


def shift(counts: Array, federation: Array) -> Array:
    """Every client's bias `r` `[C, K]`.

    A class that the federation has no example of is as one that a client has none of.

    Args:
      counts: every client's training examples of each class, `[C, K]`.
      federation: those of all clients that the federated model has learned from, `[K]`.

    Examples:
      >>> counts = jnp.array([[8.0, 0.0], [2.0, 6.0]])
      >>> print((100 * shift(counts, counts.sum(0))).round())  # clients by classes
      [[  43. -220.]
       [ -76.   64.]]
    """
    shares = federation / jnp.maximum(federation.sum(), 1)
    known = shares > 0
    ratio = jnp.where(known, counts / jnp.where(known, shares, 1), 0)
    return jnp.log((ratio + 1) / (counts.sum(-1, keepdims=True) + 1))


def corrected(
    federated: Adapter, local: Adapter, bias: Array
) -> tuple[Adapter, Adapter]:
    """Both stacked adapters with a bias of the logits: `[C, K]`, and zero."""
    return with_bias(federated, bias), with_bias(local, jnp.zeros_like(bias))


def with_bias(adapter: Adapter, bias: Array) -> Adapter:
    """An adapter whose model's logits have a bias, beside one that they may have."""
    known = adapter[LOGIT_BIAS]["bias"] if LOGIT_BIAS in adapter else 0
    return adapter | {LOGIT_BIAS: {"bias": known + bias}}


def losses(logits: Logits, *, layout: Layout = AT_ONCE) -> Callable[..., Losses]:
    """`program(base, federated, samples, bias) -> Losses`, jitted.

    `federated` are stacked adapters `[C, ...]`. Each client sends two means a
    temperature, and a count. Samples whose loss is not a number are left out.

    Args:
      logits: `(base, adapter, examples) -> [N, ..., K]`.
      layout: see `Layout`.
    """

    def one(
        base: Params, adapter: Adapter, samples: Samples, bias: Array
    ) -> tuple[Array, Array]:
        labels = samples.examples[1]
        plain = logits(base, adapter, samples.examples).astype(jnp.float32)
        both = jnp.stack([plain, plain + bias])
        at = lambda temperature: jax.vmap(cross_entropy, (0, None, None))(
            both, labels, temperature
        )
        values = jax.lax.map(at, jnp.asarray(TEMPERATURES))  # [T, 2, N]
        counted = (real(*samples) > 0) & jnp.isfinite(values).all((0, 1))
        return jnp.where(counted, values, 0).sum(-1), counted.sum()

    def program(layout: Layout, *args: Any) -> Losses:
        each = over_clients(one, in_axes=(None, 0, 0, 0), layout=layout)
        sums, counts = each(*args)
        mean = sums.sum(0) / jnp.maximum(counts.sum(), 1)
        return Losses(*mean.min(0))

    clients = lambda *args: len(args[3])
    return jit_over_clients(lambda chunks: partial(program, chunks), layout, clients)
