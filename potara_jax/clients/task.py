"""What clients learn: a loss an example, and what else methods ask of a model.

Dimension letters: `B` batch, `K` classes, `F` features, `T` positions of all examples,
`D` inputs of a module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Adapter, Apply, Array, Params
from potara_jax.data.federation import Batch

Loss = Callable[[Callable[..., Array], Batch], Array]
Training = Callable[[Array], Mapping[str, Any]]


class Metric(NamedTuple):
    """The name of a task's score, and whether it is a share, shown in per cent."""

    name: str
    percent: bool


ACCURACY = Metric("accuracy", percent=True)
LOSS = Metric("loss", percent=False)

# An adapter's entry `{"bias": [K]}` that is added to its model's logits, whatever the
# model's last layer is. It is merged as modules that are trained whole are.
LOGIT_BIAS = "logit bias"


class Task(NamedTuple):
    """Pure functions of `(base, adapter, batch)`; all but `loss` may be None.

    Attributes:
      loss: of each example, `[B]`, float32.
      logits: `[B, K]`.
      judge: the loss again, and a score, `[B]` each, float32, from one forward pass; of
        two scores the higher is better.
      inputs: what every adapted module reads, `{path: [T, D]}`.
      features: the last hidden features `[B, F]`.
      add: `add(base, deltas)`, the base with an adapter's dense deltas
        `{path: [..., D, K]}` in its kernels.
      again: `again(change)`, the task of a changed model, `change(apply)`, whose
        outputs are logits as well.
      sequences: whether `logits` are `[B, A, K]`, of `A` labels an example.
      metric: what the score is; without a judge it is minus the loss.
      at_once: the maximum number of examples of a forward pass that measures. Default:
        by the size of the inputs.
    """

    loss: Callable[[Params, Adapter, Batch], Array]
    logits: Callable[[Params, Adapter, Batch], Array] | None = None
    judge: Callable[[Params, Adapter, Batch], tuple[Array, Array]] | None = None
    inputs: Callable[[Params, Adapter, Batch], dict[str, Array]] | None = None
    features: Callable[[Params, Adapter, Batch], Array] | None = None
    add: Callable[[Params, dict[str, Array]], Params] | None = None
    again: Callable[[Callable[[Apply], Apply]], Task] | None = None
    sequences: bool = False
    metric: Metric = LOSS
    at_once: int | None = None

    def objective(self, base: Params) -> Callable[[Adapter, Batch], Array]:
        """The mean loss of a batch, as a function of the adapter."""
        return lambda adapter, batch: self.loss(base, adapter, batch).mean()

    def measure(
        self, base: Params, adapter: Adapter, batch: Batch
    ) -> tuple[Array, Array]:
        """Each example's loss and score, `[B]` each: of two scores the higher wins."""
        if self.judge is not None:
            return self.judge(base, adapter, batch)
        loss = self.loss(base, adapter, batch)
        return loss, -loss

    def of(self, adapter_of: Callable[[Any], Adapter]) -> Task:
        """The task on models of another kind, each of which stands for an adapter."""

        def lifted(fn: Callable[..., Any] | None) -> Any:
            if fn is None:
                return None
            return lambda base, model, batch: fn(base, adapter_of(model), batch)

        return self._replace(
            loss=lifted(self.loss),
            logits=lifted(self.logits),
            judge=lifted(self.judge),
            inputs=lifted(self.inputs),
            features=lifted(self.features),
        )


def _calling(apply: Apply, training: Training | None, key: Array | None) -> Apply:
    """A model as it is called in a step with a key, or where it is measured."""
    if training is None or key is None:
        return apply
    keywords = training(key)
    if not isinstance(keywords, Mapping):
        raise ValueError(
            f"it gives a {type(keywords).__name__}, and must give a dictionary of "
            'keywords, such as {"rngs": {"dropout": key}}'
        )
    return functools.partial(apply, **keywords)


def of_loss(apply: Apply, loss: Loss, *, training: Training | None = None) -> Task:
    """A task of a loss alone; its score is minus the loss.

    Args:
      apply: `(base, adapter, *inputs)`, an adapted model, as `lora.bind` gives it.
      loss: `loss(model, batch) -> [B]`, of the model bound to a base and an adapter,
        which it calls as often as it needs.
      training: see `of_classes`.

    Raises:
      ValueError: when traced, where the loss is not one number an example.
    """

    def loss_of(base: Params, adapter: Adapter, batch: Batch) -> Array:
        called = _calling(apply, training, batch.key)
        values = jnp.asarray(loss(functools.partial(called, base, adapter), batch))
        expected = jax.tree.leaves(batch)[0].shape[:1]
        if values.shape != expected:
            raise ValueError(
                f"the loss has the shape {list(values.shape)}, not {list(expected)}: "
                "return one number an example, without a mean over the batch"
            )
        return values.astype(jnp.float32)

    return Task(loss_of)


def of_classes(
    apply: Apply,
    *,
    read: Callable[..., dict[str, Array]] | None = None,
    features: Apply | None = None,
    add: Callable[[Params, dict[str, Array]], Params] | None = None,
    training: Training | None = None,
) -> Task:
    """Cross-entropy and accuracy of `apply(base, adapter, inputs) -> [B, K]`.

    An adapter may have a `LOGIT_BIAS`.

    Args:
      apply: the adapted model's logits, as `lora.bind` gives them.
      read: `(base, adapter, inputs) -> {path: [T, D]}`, see `lora.bind_inputs`.
      features: `(base, adapter, inputs) -> [B, F]`, see `lora.bind_input_of`; default:
        the logits.
      add: see `lora.bind_add`.
      training: `training(key)`, with what keywords the model is called in a training
        step; elsewhere it is called without them.
    """
    biased = _biased(apply)

    def of_inputs(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda base, adapter, batch: fn(base, _bare(adapter), batch.inputs)

    def logits(base: Params, adapter: Adapter, batch: Batch) -> Array:
        called = _calling(biased, training, batch.key)
        return called(base, adapter, batch.inputs).astype(jnp.float32)

    return of_logits(logits)._replace(
        inputs=of_inputs(read) if read else None,
        features=of_inputs(features) if features else logits,
        add=add,
        again=lambda change: of_classes(change(biased), training=training),
    )


def _biased(apply: Apply) -> Apply:
    """The model whose adapters may have a bias of the logits."""

    def outputs(base: Params, adapter: Adapter, *inputs: Any, **kwargs: Any) -> Array:
        logits = apply(base, _bare(adapter), *inputs, **kwargs)
        if not _has_bias(adapter):
            return logits
        return logits.astype(jnp.float32) + adapter[LOGIT_BIAS]["bias"]

    return outputs


def _has_bias(adapter: Any) -> bool:
    """Whether an adapter has a bias of the logits; models of other kinds have none."""
    return isinstance(adapter, Mapping) and LOGIT_BIAS in adapter


def _bare(adapter: Any) -> Any:
    """An adapter without its bias of the logits."""
    if not _has_bias(adapter):
        return adapter
    return {path: entry for path, entry in adapter.items() if path != LOGIT_BIAS}


def of_logits(logits: Callable[[Params, Adapter, Batch], Array]) -> Task:
    """Cross-entropy and accuracy of `logits(base, adapter, batch) -> [B, K]`."""

    def loss(base: Params, adapter: Adapter, batch: Batch) -> Array:
        return _cross_entropy(logits(base, adapter, batch), batch.labels)

    def judge(base: Params, adapter: Adapter, batch: Batch) -> tuple[Array, Array]:
        outputs = logits(base, adapter, batch)
        right = jnp.argmax(outputs, -1) == batch.labels
        return _cross_entropy(outputs, batch.labels), right.astype(jnp.float32)

    return Task(loss, logits, judge, metric=ACCURACY)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
