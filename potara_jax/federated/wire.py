"""What happens to an upload on its way: compression, clipping and noise.

All of it acts on an upload's *change*: its difference from the reference that the
algorithm declares, which the server knows and adds again. So a wire composes with any
algorithm, and the ledger counts the message that travels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.federated.aggregation import is_float
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.ledger import Part
from potara_jax.federated.privacy import Privacy, clipped

Array = jax.Array
Message = Any


class Compression(NamedTuple):
    """What travels in place of a tree of arrays.

    Attributes:
      encode: `encode(tree, key) -> message`.
      decode: `decode(message, like) -> tree`.
      feedback: what is lost is added to the client's next change (Seide et al. 2014;
        Karimireddy et al. 2019, arXiv 1901.09847).
    """

    encode: Callable[[Any, Array], Message]
    decode: Callable[[Message, Any], Any]
    feedback: bool = False


class Wire(NamedTuple):
    """The way of an upload to the server; by default it arrives as it is."""

    compression: Compression | None = None
    privacy: Privacy | None = None


AS_IT_IS = Wire()


class Sent(NamedTuple):
    """What travels, what the server makes of it, and what the client still owes."""

    message: Message
    upload: Any
    owed: Any


def has_feedback(wire: Wire) -> bool:
    """Whether what compression leaves out of an upload is added to the next."""
    return wire.compression is not None and wire.compression.feedback


def check(wire: Wire, algorithm: Algorithm) -> None:
    """Check that a wire makes sense for an algorithm.

    Args:
      wire: compression and privacy.
      algorithm: of the rounds.

    Raises:
      ValueError: compression keeps something back that no later upload can make up for.
    """
    if has_feedback(wire) and algorithm.restarts:
        raise ValueError(
            f"{algorithm.name} starts every round from other factors, so what top_k "
            "leaves out of one round fits no later one: choose bfloat16 or int8"
        )


def send(wire: Wire, upload: Any, reference: Any, owed: Any, key: Array) -> Sent:
    """Send one client's upload; the server clips what it decodes.

    Args:
      wire: compression and privacy.
      upload: what the client sends.
      reference: what the server knows of it, see `Update`.
      owed: what feedback has kept back so far, like `upload`; unused without.
      key: consumed.
    """
    if wire == AS_IT_IS:
        return Sent(upload, upload, owed)
    change = _map_floats(jnp.subtract, upload, reference)
    if has_feedback(wire):
        change = _map_floats(jnp.add, change, owed)
    message = wire.compression.encode(change, key) if wire.compression else change
    if has_feedback(wire):
        owed = _map_floats(jnp.subtract, change, _decoded(wire, message, change))
    return Sent(message, receive(wire, message, reference), owed)


def receive(wire: Wire, message: Message, reference: Any) -> Any:
    """The upload that the server makes of one client's message.

    Args:
      wire: compression and privacy.
      message: as `send` makes it.
      reference: of the upload, see `Update`.
    """
    if wire == AS_IT_IS:
        return message
    change = _decoded(wire, message, reference)
    if wire.privacy:
        change = clipped(wire.privacy, change)
    return _map_floats(jnp.add, change, reference)


def _decoded(wire: Wire, message: Message, like: Any) -> Any:
    """The change in a message; `like`: of the same structure and shapes."""
    return wire.compression.decode(message, like) if wire.compression else message


def _map_floats(fn: Callable[[Array, Array], Array], tree: Any, other: Any) -> Any:
    """`fn` of two trees' floating-point leaves; other leaves are the first tree's."""
    return jax.tree.map(lambda x, y: fn(x, y) if is_float(x) else x, tree, other)


# --- Ways to compress ----------------------------------------------------------------


def bfloat16() -> Compression:
    """Two bytes a number, rounded to nearest."""

    def encode(tree: Any, key: Array) -> Message:
        narrow = lambda x: x.astype(jnp.bfloat16) if is_float(x) else x
        return jax.tree.map(narrow, tree)

    def decode(message: Message, like: Any) -> Any:
        return jax.tree.map(lambda x, y: x.astype(y.dtype), message, like)

    return Compression(encode, decode)


def int8() -> Compression:
    """One byte a number and four an array, rounded at random without bias.

    An array's scale is its largest magnitude over 127; `x / scale` is rounded up with
    the probability of its fraction (QSGD, Alistarh et al. 2017, arXiv 1610.02132).
    """

    def encode(tree: Any, key: Array) -> Message:
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(key, len(leaves))
        coded = [_to_int8(x, k) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, coded)

    def decode(message: Message, like: Any) -> Any:
        return jax.tree.map(_from_int8, like, message)

    return Compression(encode, decode)


def _to_int8(x: Array, key: Array) -> Any:
    if not is_float(x):
        return x
    scale = jnp.maximum(jnp.abs(x).max(), 1e-30) / 127
    at_random = jnp.floor(x / scale + jax.random.uniform(key, x.shape))
    return {"code": at_random.clip(-127, 127).astype(jnp.int8), "scale": scale}


def _from_int8(like: Array, coded: Any) -> Array:
    if not is_float(like):
        return coded
    return (coded["code"] * coded["scale"]).astype(like.dtype)


def top_k(share: float) -> Compression:
    """The entries of an array of largest magnitude, each with its place.

    Four more bytes an entry for the place (Stich et al. 2018, arXiv 1809.07599). What
    is not sent is owed. Of a payload of which only a part travels, it is the share of
    that part.

    Args:
      share: of the entries, in (0, 1].

    Raises:
      ValueError: the share is out of its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a top-k share is {share}: it must be in (0, 1]")

    def of_part(part: Part) -> Part:
        inside = part.kept / part.of
        value = jax.tree.map(lambda x: _largest(x, share, inside), part.value)
        return part._replace(value=value)

    def encode(tree: Any, key: Array) -> Message:
        one = lambda x: of_part(x) if isinstance(x, Part) else _largest(x, share)
        return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Part))

    def decode(message: Message, like: Any) -> Any:
        return jax.tree.map(_put_back, like, message)

    return Compression(encode, decode, feedback=True)


def _largest(x: Array, share: float, inside: Array | float = 1.0) -> Any:
    """The largest entries; `inside`: the part of the array that is no padding."""
    if not is_float(x):
        return x
    flat = x.ravel()
    number = math.ceil(share * flat.size)
    _, place = jax.lax.top_k(jnp.abs(flat), number)
    sent = jnp.arange(number) < jnp.ceil(inside * number)
    value = jnp.where(sent, flat[place], 0)
    return {"value": value, "place": place.astype(jnp.int32)}


def _put_back(like: Array, sparse: Any) -> Array:
    if not is_float(like):
        return sparse
    flat = jnp.zeros(like.size, like.dtype)
    return flat.at[sparse["place"]].set(sparse["value"]).reshape(like.shape)
