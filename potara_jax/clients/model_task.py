"""What clients learn on a Flax model, before LoRA is applied to it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Model, Params, Site
from potara_jax.clients.task import Loss, Task, Training, of_classes, of_loss
from potara_jax.data.federation import Batch, take

Arguments = Callable[[Any], tuple[Any, ...]]
Sites = Mapping[str, Site]
Out = TypeVar("Out")


@dataclasses.dataclass(frozen=True)
class ModelTask:
    """A model and what is learned on it; `classification` and `objective` make one.

    Attributes:
      model: any Linen or NNX model.
      inputs: from a batch's inputs to the model's arguments.
      build: `build(scale, sites)` makes the task, see `at`.
      classes: whether labels are classes, from 0 to below the number of the model's
        outputs.
      training: see `classification`.
    """

    model: Model
    inputs: Arguments
    build: Callable[[float, Sites | None], Task]
    classes: bool = False
    training: Training | None = None

    def __post_init__(self) -> None:
        if not (self.training is None or callable(self.training)):
            raise ValueError(
                f"training is {self.training!r}: it must be a function from a key to "
                "the keywords of a training step"
            )
        if not isinstance(self.model, Model):
            raise ValueError(
                f"model is a {type(self.model).__name__}: it must be a Flax module"
            )

    def check(
        self,
        base: Params,
        pool: Batch,
        groups: Sequence[np.ndarray],
        names: Sequence[str],
    ) -> None:
        """Raise `ValueError` for what the model cannot learn from or begin with.

        Args:
          base: the model's parameters or variables, which must fit it and be finite.
          pool: all examples. A classification's labels must be classes of the model.
          groups: indices into the pool.
          names: each group's name in the message.
        """
        _check_finite(base)
        batch = take(pool, jnp.zeros(1, jnp.int32))
        if not self.classes:
            _traced(self.at(1.0).loss, base, batch)
            self._check_training(base, batch)
            return
        outputs = self._outputs(base, batch)
        _check_type_of_labels(pool.labels)
        labels = np.asarray(pool.labels)
        for group, name in zip(groups, names, strict=True):
            wrong = (labels[group] < 0) | (labels[group] >= outputs)
            if wrong.any():
                raise ValueError(
                    f"{name} has the label {labels[group][wrong][0]}: the model has "
                    f"{outputs} outputs, so number the classes from 0 to {outputs - 1}"
                )
        self._check_training(base, batch)

    def _check_training(self, base: Params, batch: Batch) -> None:
        """Check that the model can be called as in a training step.

        Raises `ValueError` where it cannot, and warns where nothing that it computes
        there depends on the step's key, so that its dropout is off.
        """
        if self.training is None:
            return
        loss = self.at(1.0).loss
        keyed = lambda key: loss(base, {}, batch._replace(key=key))
        try:
            traced = jax.make_jaxpr(keyed)(jax.random.key(0))
        except (TypeError, ValueError, errors.FlaxError) as error:
            raise ValueError(
                f"training does not fit the model: {_in_one_line(error)}"
            ) from error
        if not _depends_on_inputs(traced.jaxpr):
            warnings.warn(
                "training changes nothing: no number that the model computes in a step "
                "depends on the step's key, so its dropout is off or it has none",
                stacklevel=3,
            )

    def _outputs(self, base: Params, batch: Batch) -> int:
        """The number of the model's logits."""
        logits = self.at(1.0).logits
        assert logits is not None, "a classification has logits"
        shape = _traced(logits, base, batch).shape
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(
                f"the model gives {list(shape)} for one example: a classification "
                "needs logits, [1, classes]; use objective(...) for another loss"
            )
        return shape[1]

    def sites(self, batch: Batch, targets: str | Sequence[str]) -> dict[str, Site]:
        """The kernels that targets name, traced with a batch; see `lora.find_sites`."""
        arguments = self.inputs(batch.inputs)
        return lora.find_sites(self.model, *arguments, targets=targets)

    def at(self, scale: float, sites: Sites | None = None) -> Task:
        """The task on the adapted model.

        Args:
          scale: the factor of every delta, `alpha / R`.
          sites: the adapted kernels; without them the task has neither `add` nor
            `inputs`, which some algorithms and merges need.
        """
        add = None if sites is None else lora.bind_add(sites, scale=scale)
        return self.build(scale, sites)._replace(add=add)


def check_task(task: object) -> None:
    """Raise `ValueError` for what is no task, such as a model."""
    if not isinstance(task, ModelTask):
        raise ValueError(
            f"task is a {type(task).__name__}: make one, classification(model) or "
            "objective(model, loss)"
        )


def _check_finite(base: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        x = jnp.asarray(leaf)
        if jnp.issubdtype(x.dtype, jnp.inexact) and not bool(jnp.isfinite(x).all()):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"the base has numbers that are not finite, in '{name}'")


def _traced(function: Callable[..., Out], base: Params, batch: Batch) -> Out:
    """The shapes that the unadapted model gives for a batch."""
    if not hasattr(base, "keys"):
        raise ValueError(
            f"the base is a {type(base).__name__}: it must be the model's parameters"
        )
    try:
        return jax.eval_shape(function, base, {}, batch)
    except (errors.FlaxError, TypeError) as error:
        raise ValueError(
            "the model, its base and the inputs do not fit together: "
            f"{_in_one_line(error)}"
        ) from error


def _in_one_line(error: Exception) -> str:
    """What an error says, without its link."""
    return " ".join(str(error).split(" (https://")[0].split())


def _depends_on_inputs(jaxpr: Any) -> bool:
    """Whether an output of a traced function may depend on its inputs."""
    known = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(x in known for x in equation.invars if not hasattr(x, "val")):
            known.update(equation.outvars)
    return any(x in known for x in jaxpr.outvars if not hasattr(x, "val"))


def _check_type_of_labels(labels: Any) -> None:
    """Raise `ValueError` unless labels are integers `[N]`; says how to make them so."""
    array = isinstance(labels, jax.Array | np.ndarray)
    if array and labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        return
    if not array:
        given, change = f"a {type(labels).__name__}", "give one array of integers"
    elif labels.ndim == 2 and labels.shape[1] == 1:
        given, change = "a column, [N, 1]", "take labels[:, 0]"
    elif labels.ndim > 1:
        given = f"arrays of {list(labels.shape[1:])}"
        change = "take labels.argmax(-1) of one-hot vectors"
    else:
        given, change = str(labels.dtype), "take labels.astype(int)"
    raise ValueError(
        f"the clients' labels are {given}: a classification needs one integer for each "
        f"example, so {change}, or use objective(...) for another loss"
    )


def arguments_of(inputs: Any) -> tuple[Any, ...]:
    """A batch's inputs as a model's arguments: a tuple's items, or the inputs alone."""
    return inputs if type(inputs) is tuple else (inputs,)


def classification(
    model: Model,
    *,
    inputs: Arguments = arguments_of,
    head: str | None = None,
    training: Training | None = None,
) -> ModelTask:
    """Cross-entropy and accuracy of a model whose outputs are logits `[B, K]`.

    Args:
      model: any Linen or NNX model; see `adapters.variables` for the latter's base.
      inputs: from a batch's inputs to the model's arguments, such as `lambda x: (x,
        False)` for a model that also takes a flag. Default: a tuple is spread over the
        arguments, anything else is the only one.
      head: path of the module that reads the last hidden features, for algorithms that
        compare clients by features; default: these compare logits.
      training: for a model with dropout: `training(key)`, the keywords that a training
        step calls the model with, where the key is the step's own, of its client and
        round. Such as `lambda key: {"rngs": {"dropout": key}, "deterministic": False}`
        for Linen, and `lambda key: {"rngs": {"dropout": key}}` for NNX, where all
        random streams begin with that key. Everything else calls the model without
        them. Default: it is always called so.
    """

    def called(apply: Callable[..., Out]) -> Callable[..., Out]:
        return lambda base, adapter, x, **kwargs: apply(
            base, adapter, *inputs(x), **kwargs
        )

    def build(scale: float, sites: Sites | None) -> Task:
        scanned = sites is None or any(site.stack for site in sites.values())
        read = lora.bind_inputs(model, scale=scale)
        features = lora.bind_input_of(model, head, scale=scale) if head else None
        return of_classes(
            called(lora.bind(model, scale=scale)),
            read=None if scanned else called(read),
            features=None if features is None else called(features),
            training=training,
        )

    return ModelTask(model, inputs, build, classes=True, training=training)


def objective(
    model: Model,
    loss: Loss,
    *,
    inputs: Arguments = arguments_of,
    training: Training | None = None,
) -> ModelTask:
    """A loss of any kind on a model; the score is minus the loss.

    Args:
      model: any Linen or NNX model; see `adapters.variables` for the latter's base.
      loss: `loss(apply, batch) -> [B]`, one number an example. `apply(*arguments)` is
        the adapted model, called as often as the loss needs: a ranking loss calls it
        twice.
      inputs: from a batch's inputs to arguments that the model can be traced with, to
        find its kernels. Default: a tuple is spread over the arguments, anything else
        is the only one.
      training: for a model with dropout, see `classification`.
    """

    if not callable(loss):
        raise ValueError(f"loss is {loss!r}: it must be a function, (apply, batch)")

    def build(scale: float, sites: Sites | None) -> Task:
        del sites
        return of_loss(lora.bind(model, scale=scale), loss, training=training)

    return ModelTask(model, inputs, build, training=training)
