"""The weights and merges of a cell, each one jitted program over all clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax import merging
from potara_jax.adapters.lora import Adapter
from potara_jax.clients.compiling import jit
from potara_jax.clients.task import Task
from potara_jax.experiment.checks import Refused
from potara_jax.experiment.context import Context, heldout_samples, training_samples
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.label_prior import LabelPrior, label_prior_of
from potara_jax.experiment.methods import (
    Combination,
    Weighing,
    merged_methods,
    potara,
)
from potara_jax.experiment.programs import Programs
from potara_jax.merging import (
    Client,
    Estimator,
    Measured,
    Merge,
    Samples,
    likelihoods,
    registry,
)
from potara_jax.merging.damping import DAMPINGS, Damping
from potara_jax.merging.likelihoods import LIKELIHOODS, Likelihood

Pair = tuple[Adapter, Adapter]

_ROUNDING = 1e-5  # of a weight in float32


class Merges(NamedTuple):
    """What was measured on a cell's pair of models.

    Attributes:
      pair: the models that are merged, the federated ones corrected by `prior` if the
        experiment says so.
      measured: by weighing.
      losses: along the segments, `[C, T]`.
      points: of the segments, `[T]`.
      prior: the correction, if examples have classes.
    """

    pair: Pair
    measured: dict[Weighing, Measured]
    losses: jax.Array
    points: jax.Array
    prior: LabelPrior | None = None


def measure_all(at: Context, parents: Pair) -> Merges:
    """All weights that the table needs, of federated and local adapters `[C, ...]`."""
    prior = label_prior_of(at, parents)
    pair = prior.correct(parents) if prior and prior.used else parents
    points = jnp.linspace(0, 1, at.experiment.merging.grid_points)
    losses = at.once_measured("losses", lambda: _losses(at, pair, points))
    methods = merged_methods(at.experiment, at.problem.task)
    wanted = dict.fromkeys(method.weighing for method in methods)
    direct = [weighing for weighing in wanted if source_of(weighing) == weighing]
    weigh = lambda weighing: _measure_with_interval(at, weighing, pair)
    measured = dict(zip(direct, at.each("weights", weigh, direct), strict=True))
    for weighing in wanted:
        if weighing not in measured:
            measured[weighing] = derive(at, weighing, measured[source_of(weighing)])
    return Merges(pair, measured, losses, points, prior)


def _measure_with_interval(at: Context, weighing: Weighing, pair: Pair) -> Measured:
    """The weights of a pair; Potara's with its bootstrap interval."""
    if weighing != potara_of(at):
        return measure_once(at, f"weight {weighing}", weighing, pair)
    program = interval_program(at.programs, weighing)
    measured = lambda: _checked(weighing, program(*arguments(at, pair, weighing)))
    return at.once_measured(f"weight and interval {weighing}", measured)


def measure_once(at: Context, name: str, weighing: Weighing, pair: Pair) -> Measured:
    """The weights of a pair, kept under a name if they take long."""
    return at.once_measured(name, lambda: measure(at, weighing, pair))


def _losses(at: Context, pair: Pair, points: jax.Array) -> jax.Array:
    """The loss `[C, T]` along every client's segment, on its held-out examples."""
    return at.programs.curves(at.problem.base, *pair, heldout_samples(at), points)


def check_bounds(name: str, weight: Any) -> None:
    """Check that a weight is in [0, 1], unless it is registered as unbounded.

    One that is not a number is let through: its client's model has diverged.

    Args:
      name: of the weight.
      weight: as `Measured` has it.

    Raises:
      Refused: it is outside.
    """
    if not registry.weights()[name].bounded:
        return
    for x in map(np.asarray, jax.tree.leaves(weight)):
        outside = (x < -_ROUNDING) | (x > 1 + _ROUNDING)
        if outside.any():
            raise Refused(
                f"the weight '{name}' is {x[outside][0]:.4g} for a client: it must be "
                "in [0, 1], or be registered with bounded=False"
            )


def potara_of(at: Context) -> Weighing:
    """The weighing whose certainty the table reports."""
    return potara(at.experiment)


def source_of(weighing: Weighing) -> Weighing:
    """The weighing that measures what this one needs: usually itself."""
    derived = registry.weights()[weighing.weight].from_curvature is not None
    if derived or weighing.per == "module":
        return weighing._replace(weight="potara", per="client")
    return weighing


def measure(at: Context, weighing: Weighing, pair: Pair) -> Measured:
    """The weights of a pair of stacked adapters; see `check_bounds`."""
    program = weigh_program(at.programs, weighing)
    return _checked(weighing, program(*arguments(at, pair, weighing)))


def _checked(weighing: Weighing, measured: Measured) -> Measured:
    check_bounds(weighing.weight, measured.weight)
    return measured


def sent_together(at: Context, weighing: Weighing, pair: Pair) -> tuple[int, int]:
    """Bytes that all clients send and receive to weigh; none if each weighs alone."""
    chosen, shapes = estimator(at.programs, weighing), arguments(at, pair, weighing)
    decide = chosen.decide
    if decide is None:
        return 0, 0

    def count() -> tuple[int, int]:
        sent = jax.eval_shape(merging.over_each(chosen.measure), *shapes)
        weights = jax.eval_shape(decide, sent, at.federation.train.count)
        return _bytes(sent), _bytes(weights)

    return at.programs.once(("sent", weighing, tuple(pair[0])), count)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def derive(at: Context, weighing: Weighing, measured: Measured) -> Measured:
    """Weights from curvature that another weighing has measured."""
    program = at.programs.once(weighing, lambda: _derive_program(at, weighing))
    weight = program(measured.curvature, at.federation.train.count)
    check_bounds(weighing.weight, weight)
    return Measured(weight, measured.curvature)


def combine(at: Context, combination: Combination, pair: Pair, weight: Any) -> Adapter:
    """The pair merged in one way with weights `[C, ...]`."""
    program = at.programs.once(
        combination, lambda: combine_program(at.programs.task, combination)
    )
    return program(*arguments(at, pair, potara_of(at)), weight)


def arguments(at: Context, pair: Pair, weighing: Weighing) -> tuple[Any, ...]:
    """The arguments of every program over clients."""
    trained = weighing.samples == "train"
    samples = training_samples(at) if trained else heldout_samples(at)
    return program_arguments(at, pair, samples)


def program_arguments(at: Context, pair: Pair, samples: Samples) -> tuple[Any, ...]:
    """`(base, federated, local, samples, trained_on, key)`."""
    counts = at.federation.train.count
    return (at.problem.base, *pair, samples, counts, at.key_for("merging"))


# --- Programs ------------------------------------------------------------------------


def weigh_program(programs: Programs, weighing: Weighing) -> Callable[..., Measured]:
    """A jitted program, one for all samples that an estimator may look at."""
    anywhere = weighing._replace(samples="none")
    return programs.once(
        ("weigh", anywhere),
        lambda: merging.weigh(estimator(programs, weighing), layout=programs.layout),
    )


def interval_program(programs: Programs, weighing: Weighing) -> Callable[..., Measured]:
    """A jitted program of a weight with its interval over bootstrap samples."""
    return programs.once(
        ("bootstrap", weighing),
        lambda: merging.weigh(
            merging.bootstrap(estimator(programs, weighing)), layout=programs.layout
        ),
    )


def estimator(programs: Programs, weighing: Weighing) -> Estimator:
    """The estimator of a weighing, with the experiment's settings."""
    experiment, task = programs.experiment, programs.task
    options: dict[str, Any] = {
        "points": experiment.merging.grid_points,
        "damping": damping(experiment),
    }
    if weighing.space is not None:
        options["space"] = weighing.space
    return registry.weights()[weighing.weight].build(
        loss=task.loss,
        logits=task.logits,
        likelihood=likelihood(experiment.merging.curvature, task),
        options=options,
    )


def likelihood(curvature: str, task: Task) -> Likelihood:
    """The Fisher information to measure: empirical if the task has only a loss."""
    if task.logits is None:
        return likelihoods.empirical_of_loss(task.loss)
    return LIKELIHOODS[curvature](likelihoods.one_example(task.logits))


def damping(experiment: Experiment) -> Damping:
    """How Fisher information becomes a posterior variance."""
    settings = experiment.merging
    return DAMPINGS[settings.damping](settings.damping_value)


def _derive_program(at: Context, weighing: Weighing) -> Callable[..., Any]:
    derived = registry.weights()[weighing.weight].from_curvature
    if derived is not None:
        return jit(jax.vmap(derived))
    dampened, per = damping(at.experiment), weighing.per

    def weight(curvature: merging.Curvature, trained_on: jax.Array) -> Any:
        return merging.potara_weight(curvature, dampened, trained_on, per=per)

    return jit(jax.vmap(weight))


def combine_program(task: Task, combination: Combination) -> Callable[..., Adapter]:
    """A jitted program that merges in one way."""
    entry = registry.merges()[combination.merge]
    method = _with_grams(task, entry) if entry.needs == "grams" else entry.make()
    return merging.combine(method, space=combination.space, rank=combination.rank)


def _with_grams(task: Task, entry: Any) -> Callable[[Client], Merge]:
    """A merge that needs both models' inputs on the client's samples."""
    read = task.inputs
    assert read is not None, "a task without inputs has no such merge"

    def method(client: Client) -> Merge:
        def grams(adapter: Adapter) -> dict[str, jax.Array]:
            inputs = read(client.base, adapter, client.examples)
            return {path: _gram(x, client.weight) for path, x in inputs.items()}

        return entry.make((grams(client.federated), grams(client.local)))

    return method


def _gram(inputs: jax.Array, weight: jax.Array) -> jax.Array:
    """`x' x` of inputs `[T, D]`, without the samples of zero weight `[N]`."""
    by_sample = inputs.reshape(len(weight), -1, inputs.shape[-1])
    real = jnp.where((weight > 0)[:, None, None], by_sample, 0).reshape(inputs.shape)
    return jnp.einsum("td,te->de", real, real, precision="highest")
