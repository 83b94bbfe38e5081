"""The output ensemble: not a merge, but a control for merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Apply, Array, Params


def ensemble(apply: Apply) -> Callable[..., Array]:
    """Mixed predictions of two adapters, `log(w p_F + (1 - w) p_L)`, as log-odds.

    The result is `apply(base, both, *inputs) -> [..., K]` for `both = {"federated",
    "local", "weight"}`: two adapters and a scalar. Both models run: inference costs
    twice what a merged model costs. The logits are log-probabilities.
    """

    def mixed(base: Params, both: dict[str, Any], *inputs: Any) -> Array:
        log_p = [
            jax.nn.log_softmax(apply(base, both[name], *inputs).astype(jnp.float32))
            for name in ("federated", "local")
        ]
        weight = both["weight"]
        return jnp.logaddexp(log_p[0] + jnp.log(weight), log_p[1] + jnp.log1p(-weight))

    return mixed
