"""Federations of a problem: who is tested on what, and the shapes that cells share."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from potara_jax.experiments import digits as own

from potara_jax.data import digits
from potara_jax.data.federation import Batch
from potara_jax.experiment.problem import dealt, federations

LABELS = np.arange(600) % 7


def made(kind: str, heterogeneity, *, clients=6):
    settings = own.Digits(
        heterogeneity=heterogeneity, seeds=(0, 1), clients=clients, samples=10
    )
    if kind == "digits":
        make = partial(own._federation, digits.load(0), settings)
    else:
        pool = Batch(jnp.zeros((len(LABELS), 1)), jnp.asarray(LABELS))
        make = partial(dealt, settings, pool, LABELS)
    return federations(settings, make)


@pytest.mark.parametrize("kind", ["digits", "dealt"])
@pytest.mark.parametrize("heterogeneity", [("0.1",), ("shards2",), ("0.5", "0.1")])
def test_clients_are_tested_in_the_proportions_of_their_classes(kind, heterogeneity):
    for found in made(kind, heterogeneity).values():
        labels = np.asarray(found.pool.labels)[np.asarray(found.test.index)]
        weight, held = np.asarray(found.test.weight), np.asarray(found.proportions)
        shares = [
            np.bincount(own, w, len(share))
            for own, w, share in zip(labels, weight, held, strict=True)
        ]
        np.testing.assert_allclose(shares, held, atol=1e-6)


@pytest.mark.parametrize("kind", ["digits", "dealt"])
def test_all_cells_have_one_shape(kind):
    shapes = {
        (found.train.index.shape, found.test.index.shape)
        for found in made(kind, ("0.1", "0.5", "shards2")).values()
    }
    assert len(shapes) == 1
