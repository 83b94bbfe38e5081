"""Greedy decoding with a key-value cache, as one program.

Dimension letters: `B` batch, `L` tokens of the longest prompt, `M` new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Read = Callable[[Array, Array, Any, Array], tuple[Array, Any]]


def greedy(
    read: Read, cache: Any, prompt: Array, count: Array, *, most: int, stop: int = -1
) -> Array:
    """The likeliest continuations, token by token, `[B, M]` with `M = most`.

    read: `(tokens [B, T], positions [B, T], cache, last [B]) -> (logits [B, V],
      cache)`, as `Llama.read` is. cache: an empty one of `L + M` slots.
    prompt: `[B, L]`, padded behind; `count` `[B]` of its tokens are real.
    stop: the token that ends an answer; it and all behind it are given as `stop`. The
      loop ends with the last answer.
    """
    batch, length = prompt.shape
    places = jnp.broadcast_to(jnp.arange(length), prompt.shape)
    logits, cache = read(prompt, places, cache, count - 1)
    tokens = jnp.full((batch, most), stop, jnp.int32)

    def unfinished(state):
        number, _, token, _ = state
        return (number < most) & jnp.any(token != stop)

    def step(state):
        number, tokens, token, cache = state
        tokens = tokens.at[:, number].set(token)
        place = (count + number)[:, None]
        logits, cache = read(token[:, None], place, cache, jnp.zeros_like(count))
        following = jnp.argmax(logits, -1).astype(jnp.int32)
        following = jnp.where(token == stop, stop, following)
        return number + 1, tokens, following, cache

    first = jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.lax.while_loop(unfinished, step, (0, tokens, first, cache))[1]
