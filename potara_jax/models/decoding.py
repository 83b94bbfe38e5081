"""Greedy decoding with a key-value cache, as one program.

Dimension letters: `B` batch, `L` tokens of the longest prompt, `M` new tokens, `V`
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Read = Callable[[Array, Array, Any, Array], tuple[Array, Any]]
_State = tuple[Any, Array, Array, Any]  # number of new tokens, all, next one, cache


def greedy(
    read: Read,
    cache: Any,
    prompt: Array,
    count: Array,
    *,
    max_tokens: int,
    stop: int = -1,
) -> Array:
    """Continue each prompt with its likeliest tokens, one after the other.

    The loop ends with the last answer.

    Args:
      read: `(tokens [B, T], positions [B, T], cache, last [B]) -> (logits [B, V],
        cache)`, as `Llama.read`.
      cache: an empty one with `L + M` slots.
      prompt: `[B, L]`, padded at the end.
      count: `[B]`, the length of each prompt.
      max_tokens: the number `M` of new tokens.
      stop: the token that ends an answer.

    Returns:
      The new tokens, `[B, M]`, int32; `stop` from the end of an answer on.
    """
    batch, length = prompt.shape
    positions = jnp.broadcast_to(jnp.arange(length), prompt.shape)
    logits, cache = read(prompt, positions, cache, count - 1)
    tokens = jnp.full((batch, max_tokens), stop, jnp.int32)

    def unfinished(state: _State) -> Array:
        number, _, token, _ = state
        return (number < max_tokens) & jnp.any(token != stop)

    def step(state: _State) -> _State:
        number, tokens, token, cache = state
        tokens = tokens.at[:, number].set(token)
        position = (count + number)[:, None]
        logits, cache = read(token[:, None], position, cache, jnp.zeros_like(count))
        following = jnp.argmax(logits, -1).astype(jnp.int32)
        following = jnp.where(token == stop, stop, following)
        return number + 1, tokens, following, cache

    first = jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.lax.while_loop(unfinished, step, (0, tokens, first, cache))[1]
