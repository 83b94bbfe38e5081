"""When a cell's federated models are corrected by class shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.clients.task import LOGIT_BIAS, of_classes, of_loss
from potara_jax.data.federation import (
    Batch,
    Federation,
    evenly_weighted,
    pack,
)
from potara_jax.experiment import label_prior
from potara_jax.experiment.context import Context
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import Programs
from potara_jax.experiments import digits
from potara_jax.runs.progress import Silent
from potara_jax.runs.store import Cell, Memory

CELL, CLIENTS, CLASSES, EACH = Cell("0.5", 0), 3, 3, 60
SHARES = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
# Logits that are right where all classes have equal shares.
TASK = of_classes(lambda base, adapter, x: x + adapter["head"]["bias"])
PAIR = 2 * ({"head": {"bias": jnp.zeros((CLIENTS, CLASSES))}},)


def federation(heldout) -> Federation:
    """Clients that train by `SHARES`, and have other shares held out."""
    rng = np.random.default_rng(0)
    draw = lambda shares: [rng.choice(CLASSES, EACH, p=p) for p in shares]
    labels = np.concatenate([*draw(SHARES), *draw(heldout)])
    inputs = np.eye(CLASSES)[labels] + rng.normal(size=(len(labels), CLASSES))
    groups = np.split(np.arange(len(labels)), 2 * CLIENTS)
    train, held = pack(groups[:CLIENTS]), pack(groups[CLIENTS:])
    pool = Batch(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels))
    test = evenly_weighted(held)
    return Federation(pool, train, held, test, jnp.asarray(SHARES), train.count)


def context(setting: str, given: Federation, task=TASK, newcomers=0.0) -> Context:
    experiment = digits.EXPERIMENT.set(
        {
            "cells.clients": CLIENTS,
            "merging.label_prior": setting,
            "participation.newcomers": newcomers,
        }
    )
    adapter = lambda key, rank=1: jax.tree.map(lambda x: x[0], PAIR[0])
    problem = Problem(task, {}, adapter, {CELL: given})
    programs = Programs(experiment, problem)
    stored, shown = Memory(print), Silent()
    key = jax.random.key(0)
    return Context(experiment, problem, programs, CELL, key, stored, shown)


LIKE_TRAINING, EQUAL = federation(SHARES), federation(np.full((3, 3), 1 / 3))


@pytest.mark.parametrize(
    ("setting", "given", "used"),
    [
        ("off", LIKE_TRAINING, False),
        ("auto", LIKE_TRAINING, True),
        ("auto", EQUAL, False),
        ("on", EQUAL, True),
    ],
)
def test_auto_corrects_where_held_out_samples_lose_less(setting, given, used):
    at = context(setting, given)
    prior = label_prior.label_prior_of(at, PAIR)
    assert prior.used is used
    assert bool(prior.losses.helps) is (given is LIKE_TRAINING)
    federated, local = label_prior.as_set(at, PAIR)
    assert (LOGIT_BIAS in federated) is used
    if used:
        np.testing.assert_array_equal(federated[LOGIT_BIAS]["bias"], prior.bias)
        assert not np.any(local[LOGIT_BIAS]["bias"])


def test_newcomers_have_no_part_in_the_shares_but_a_bias():
    at = context("on", LIKE_TRAINING, newcomers=1 / 3)
    labels = np.asarray(LIKE_TRAINING.pool.labels)[
        np.asarray(LIKE_TRAINING.train.index)
    ]
    counts = np.stack([np.bincount(row, minlength=CLASSES) for row in labels])
    q = counts[:2].sum(0) / counts[:2].sum()
    expected = np.log((counts + q) / (EACH + 1)) - np.log(q)
    bias = label_prior.label_prior_of(at, PAIR).bias
    np.testing.assert_allclose(bias, expected, rtol=1e-5)


def test_without_classes_there_is_no_correction_and_on_is_refused():
    task = of_loss(
        lambda *args: args[2], lambda apply, batch: apply(batch.inputs)[:, 0]
    )
    at = context("auto", LIKE_TRAINING, task)
    assert label_prior.label_prior_of(at, PAIR) is None
    assert label_prior.as_set(at, PAIR) is PAIR
    label_prior.check(at.experiment, at.problem)
    refused = context("on", LIKE_TRAINING, task)
    with pytest.raises(ValueError, match=r"label_prior is on: .* use off"):
        label_prior.check(refused.experiment, refused.problem)
    label_prior.check(refused.experiment, context("on", LIKE_TRAINING).problem)
