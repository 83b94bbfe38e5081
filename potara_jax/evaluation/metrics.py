"""Per-client metrics.

A client's test follows its distribution, and so does the accuracy on it. Where clients
differ in their shares of the classes, a model gains by knowing the shares alone; the
balanced accuracy, which gives a client's classes equal shares, does not reward that.

Dimension letters: `C` clients, `M` test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.clients.compiling import jit
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.task import ACCURACY, Task
from potara_jax.data.federation import Batch, Weighted, take

Array = jax.Array
# Limits of what a model reads in one forward pass, to bound memory. Each token of an
# answer has the logits of a vocabulary.
_MAX_EXAMPLES, _MAX_NUMBERS, _MAX_TOKENS, _MAX_ANSWERS = 128, 2**16, 2**14, 2**11


class Scores(NamedTuple):
    """Each client's scores on its test distribution, `[C]` each.

    Attributes:
      accuracy: the task's score, see `Task.metric`; minus the loss for a task with only
        a loss. It is NaN where the model's loss is: the class of the largest logit
        means nothing then.
      loss: the mean loss.
      balanced: the mean over a client's classes of the accuracy on each, see
        `equal_shares`; None where examples have no classes.
    """

    accuracy: Array
    loss: Array
    balanced: Array | None = None


def evaluator(task: Task, *, layout: Layout = AT_ONCE) -> Callable[..., Scores]:
    """`evaluate(shared, adapters, test) -> Scores`, jitted, for adapters `[C, ...]`.

    A client's parts after its last example with a weight are left out, or of a chunk of
    clients those that none needs. On a CPU one client at a time is fastest, because its
    activations fit the cache.

    Args:
      task: of the clients.
      layout: see `Layout`.
    """

    def evaluate(shared: Any, adapter: Adapter, test: Weighted) -> Scores:
        used = _length(test.weight)
        values = _of_examples(task, shared, adapter, test.index, used=used)
        return _scores(task, shared.pool, values, test)

    def make(layout: Layout) -> Callable[..., Scores]:
        return over_clients(evaluate, in_axes=(None, 0, 0), layout=layout)

    return jit_over_clients(make, layout, lambda *args: len(args[2].weight))


def common_evaluator(task: Task) -> Callable[..., Scores]:
    """`evaluate(shared, adapter, test) -> Scores` of one model that all clients share.

    The model sees every distinct test example once, not once per client.
    """

    @jit
    def scores(
        shared: Any, adapter: Adapter, index: Array, place: Array, test: Weighted
    ) -> Scores:
        values = _of_examples(task, shared, adapter, index)

        def of_client(place: Array, test: Weighted) -> Scores:
            return _scores(task, shared.pool, [x[place] for x in values], test)

        return jax.vmap(of_client)(place, test)

    def evaluate(shared: Any, adapter: Adapter, test: Weighted) -> Scores:
        index, place = np.unique(np.asarray(test.index), return_inverse=True)
        return scores(shared, adapter, index, place.reshape(test.index.shape), test)

    return evaluate


def _scores(task: Task, pool: Batch, values: Sequence[Array], test: Weighted) -> Scores:
    """One client's scores, from the score and the loss of its test examples `[M]`."""
    accuracy, loss = (_mean(x, test.weight) for x in values)
    if not has_classes(task, pool):
        return Scores(accuracy, loss)
    equal = equal_shares(pool.labels[test.index], test.weight)
    return Scores(accuracy, loss, _mean(values[0], equal))


def has_classes(task: Task, pool: Batch) -> bool:
    """Whether the pool's labels `[P]` are classes, and accuracy is the task's score."""
    labels = pool.labels
    if task.metric != ACCURACY or task.sequences or not hasattr(labels, "dtype"):
        return False
    return labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)


def equal_shares(labels: Array, weight: Array) -> Array:
    """The weights `[M]` of a client's test that give its classes equal shares.

    A class of the client is one with a weight above zero; among the examples of a
    class, the weights keep their ratios. They sum to one: the mean of a score with them
    is the mean over classes of the mean on each, such as the balanced accuracy.

    Args:
      labels: `[M]`.
      weight: `[M]`, of each example.
    """
    place = jnp.unique(labels, return_inverse=True, size=len(labels))[1]
    of_class = jnp.zeros(len(labels), weight.dtype).at[place].add(weight)
    share = 1 / (of_class > 0).sum()
    return jnp.where(weight > 0, share * weight / of_class[place], 0)


def _length(weight: Array) -> Array:
    """The number of test examples `[]` up to the last with a weight, of `[M]`."""
    return jnp.max(jnp.where(weight > 0, jnp.arange(1, len(weight) + 1), 0))


def _of_examples(
    task: Task,
    shared: Any,
    adapter: Adapter,
    index: Array,
    *,
    used: Array | None = None,
) -> tuple[Array, Array]:
    """The score and the loss of every example of the pool's `index` `[M]`.

    used: `[]`, how many of them count; those of the others are zero or right.
    """

    def measure(rows: Array) -> tuple[Array, Array]:
        loss, score = task.measure(shared.base, adapter, take(shared.pool, rows))
        return jnp.where(jnp.isnan(loss), jnp.nan, score), loss

    at_once = examples_at_once(task, shared.pool)
    return in_parts(measure, index, max_size=at_once, used=used)


def in_parts(
    function: Callable[[Array], Any],
    index: Array,
    *,
    max_size: int,
    used: Array | None = None,
) -> Any:
    """`function(index)`, a tree of arrays with one row per entry of the index `[M]`.

    Computed in equal parts of up to `max_size` entries, to bound memory.

    Args:
      function: of some indices; what it returns has one row for each.
      index: `[M]`.
      max_size: the maximum number of entries in a part.
      used: `[]`, how many entries are needed. Parts beyond are not computed: their rows
        are zero. Default: all.
    """
    parts = -(-len(index) // max_size)
    padded = jnp.resize(index, (parts, -(-len(index) // parts)))
    compute = jax.lax.map if used is None else partial(_first_parts, used=used)

    def joined(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])[: len(index)]

    return jax.tree.map(joined, compute(function, padded))


def _first_parts(
    function: Callable[[Array], Any], padded: Array, *, used: Array
) -> Any:
    """`function` of each row of `[P, S]` that has some of the first `used` entries."""

    def compute(part: Array, done: Any) -> Any:
        values = function(padded[part])
        return jax.tree.map(lambda all_, new: all_.at[part].set(new), done, values)

    shapes = jax.eval_shape(function, padded[0])
    nothing = jax.tree.map(
        lambda x: jnp.zeros((len(padded), *x.shape), x.dtype), shapes
    )
    return jax.lax.fori_loop(0, -(-used // padded.shape[1]), compute, nothing)


def examples_at_once(task: Task, pool: Batch) -> int:
    """The number of a pool's examples that are measured in one forward pass."""
    if task.at_once is not None:
        return task.at_once
    size = sum(leaf[0].size for leaf in jax.tree.leaves(pool.inputs))
    limit = _MAX_NUMBERS // size
    if task.sequences:
        limit = min(_MAX_TOKENS // size, _MAX_ANSWERS // pool.inputs.answers[0].size)
    return max(1, min(_MAX_EXAMPLES, limit))


def _mean(values: Array, weight: Array) -> Array:
    """The weighted mean over the last axis; a value without weight may be infinite."""
    return jnp.where(weight > 0, weight * values, 0).sum(-1)


def worst_decile(values: np.ndarray) -> float:
    """The mean of the worst tenth of the clients, of at least one; NaN is the worst."""
    ordered = np.sort(np.asarray(values, np.float64))
    if np.isnan(ordered).any():
        return float("nan")
    return float(ordered[: max(1, len(ordered) // 10)].mean())


def adapter_parameters(adapters: Adapter) -> int:
    """The number of parameters that an adapter of `[C, ...]` adds at inference.

    Examples that a client's model keeps do not count.
    """
    leaves = jax.tree.leaves(adapters, is_leaf=lambda x: isinstance(x, Batch))
    return sum(leaf[0].size for leaf in leaves if not isinstance(leaf, Batch))


def segment_barrier(losses: Array, points: Array) -> Array:
    """The highest excess of a segment's loss over the line between its ends.

    Zero if the loss is below that line everywhere: the two models are linearly
    connected (Frankle et al. 2020, arXiv 1912.05671).

    Args:
      losses: along each client's segment, `[C, T]`.
      points: where they are measured, from 0 to 1, `[T]`.
    """
    line = losses[:, :1] * (1 - points) + losses[:, -1:] * points
    return jnp.maximum(losses - line, 0).max(-1)
