"""The compiled programs of a run: each is made once, when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import jax

from potara_jax.clients.axis import Layout
from potara_jax.clients.task import Task
from potara_jax.evaluation.metrics import Scores, common_evaluator, evaluator
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.federating import measuring_layout
from potara_jax.experiment.problem import Problem
from potara_jax.merging import ensemble, loss_curves

T = TypeVar("T")


class Programs:
    """Jitted programs over all clients, which all cells of a run share."""

    def __init__(self, experiment: Experiment, problem: Problem) -> None:
        self.experiment = experiment
        self.problem = problem
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """The result of `make()`, called only the first time for this name."""
        if name not in self._made:
            with self._lock:
                if name not in self._made:
                    self._made[name] = make()
        return self._made[name]

    @property
    def task(self) -> Task:
        """The problem's task."""
        return self.problem.task

    @cached_property
    def layout(self) -> Layout:
        """How clients are laid out where models are measured, merged and scored."""
        return measuring_layout(self.experiment)

    @property
    def evaluate(self) -> Callable[..., Scores]:
        """Scores every client's adapter on its own test."""
        return self.once("scores", lambda: evaluator(self.task, layout=self.layout))

    @property
    def evaluate_common(self) -> Callable[..., Scores]:
        """Scores one adapter on every client's test."""
        return self.once("scores of one for all", lambda: common_evaluator(self.task))

    @property
    def evaluate_ensemble(self) -> Callable[..., Scores]:
        """Scores the averaged predictions of two adapters per client."""
        again = self.task.again
        assert again is not None, "a task of one model alone has no ensemble"
        make = lambda: evaluator(again(ensemble), layout=self.layout)
        return self.once("scores of ensembles", make)

    @property
    def curves(self) -> Callable[..., jax.Array]:
        """The loss along every client's segment."""
        make = lambda: loss_curves(self.task.loss, layout=self.layout)
        return self.once("curves", make)
