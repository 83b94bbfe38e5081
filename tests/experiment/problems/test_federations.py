"""Federations of cells: who is tested on what, and the shapes that cells share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data import digits
from potara_jax.data.federation import Batch
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import digits as digits_problem
from potara_jax.experiment.problems import federations
from potara_jax.experiment.settings import Cells, Merging
from potara_jax.experiments import digits as digits_experiment

LABELS = np.arange(600) % 7
IMAGES = digits.load(0)
DIGITS = digits_experiment.EXPERIMENT


def of_digits(heterogeneity, seed, *, size):
    return digits.federation(
        IMAGES, heterogeneity, seed, clients=6, heldout=10, size=size
    )


def make(kind, heterogeneity):
    cells = Cells(seeds=(0, 1), heterogeneity=heterogeneity, clients=6)
    if kind == "digits":
        return federations.for_cells(cells, of_digits)
    pool = Batch(jnp.zeros((len(LABELS), 1)), jnp.asarray(LABELS))
    experiment = Experiment(
        "", lambda *_: None, cells=cells, merging=Merging(samples=10)
    )
    return federations.dealt(experiment, pool, LABELS)


@pytest.mark.parametrize("kind", ["digits", "dealt"])
@pytest.mark.parametrize("heterogeneity", [("0.1",), ("shards2",), ("0.5", "0.1")])
def test_clients_are_tested_in_the_proportions_of_their_classes(kind, heterogeneity):
    for federation in make(kind, heterogeneity).values():
        index = np.asarray(federation.test.index)
        labels = np.asarray(federation.pool.labels)[index]
        weights = np.asarray(federation.test.weight)
        expected = np.asarray(federation.proportions)
        shares = [
            np.bincount(row, weight, expected.shape[1])
            for row, weight in zip(labels, weights, strict=True)
        ]
        np.testing.assert_allclose(shares, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["digits", "dealt"])
def test_all_cells_have_one_shape(kind):
    made = make(kind, ("0.1", "0.5", "shards2"))
    assert list(made) == [(h, s) for h in ("0.1", "0.5", "shards2") for s in (0, 1)]
    shapes = {(x.train.index.shape, x.test.index.shape) for x in made.values()}
    assert len(shapes) == 1


@pytest.mark.parametrize("kind", ["digits", "dealt", "natural"])
def test_seeds_to_search_on_stay_apart_from_those_of_the_table(kind):
    """What is trained and measured on is none of the tables' tests, by image."""
    images = len(IMAGES.labels)

    def made(seed, apart):
        heterogeneity = ("natural",) if kind == "natural" else ("0.5", "tasks")
        cells = Cells((seed,), heterogeneity, clients=6, apart_from=apart)
        more = {"cells": cells, "merging": Merging(samples=10)}
        if kind == "digits":
            source = DIGITS.source
            experiment = Experiment("", lambda *_: None, source=source, **more)
            return digits_problem.dealt(experiment, IMAGES)
        experiment = Experiment("", lambda *_: None, **more)
        pool = Batch(jnp.zeros((len(LABELS), 1)), jnp.asarray(LABELS))
        if kind == "dealt":
            return federations.dealt(experiment, pool, LABELS)
        owner = np.arange(600) % 6
        return federations.natural(experiment, pool, owner, LABELS, test=20)

    tested = [
        np.asarray(each.test.index)[np.asarray(each.test.weight) > 0]
        for seed in (0, 1, 2)
        for each in made(seed, ()).values()
    ]
    tested = set((np.concatenate(tested) % images).tolist())
    for federation in made(100, (0, 1, 2)).values():
        for part in (federation.train, federation.heldout):
            for row, count in zip(part.index, part.count, strict=True):
                assert not set((np.asarray(row[:count]) % images).tolist()) & tested


def test_natural_clients_of_all_seeds_have_one_shape():
    owner = np.repeat(np.arange(3), [100, 200, 300])
    cells = Cells(seeds=(0, 1), heterogeneity=("natural",), clients=3)
    pool = Batch(jnp.zeros((600, 1)), jnp.asarray(LABELS))
    experiment = Experiment("", lambda *_: None, cells=cells)
    first, second = federations.natural(
        experiment, pool, owner, LABELS, test=20
    ).values()
    assert first.train.index.shape == second.train.index.shape
    assert not np.array_equal(first.train.index, second.train.index)
