"""A problem of GLUE: what is trained on and tested on, and what the encoder reads."""

import jax
import numpy as np
import pytest

from potara_jax.data import glue as data
from potara_jax.data.glue import Labelled
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import glue, sentences
from potara_jax.experiments.glue import EXPERIMENT
from tests import small

SETTINGS = {
    "cells.seeds": (0,),
    "cells.clients": 2,
    "merging.samples": 4,
    "lora.rank": 2,
    "source.tasks": ("cola", "mrpc"),
    "compute.precision": "float32",
}
# By data set and split; the last test of MRPC is a training example too.
EXAMPLES = {
    ("glue/cola", "train"): Labelled(
        [f"The {n} is. " for n in range(40)], [0, 1, 1, 1] * 10
    ),
    ("glue/cola", "validation"): Labelled([f"A {n}." for n in range(9)], [0, 1, 1] * 3),
    ("glue/mrpc", "train"): Labelled(
        [(f"{n} is.", f"Is {n}?") for n in range(40)], [0, 1] * 20
    ),
    ("glue/mrpc", "validation"): Labelled(
        [*[(f"{n}.", f"{n}!") for n in range(6)], ("7 is. ", "Is 7?")], [0, 1] * 3 + [1]
    ),
}


@pytest.fixture(autouse=True)
def data_sets(monkeypatch):
    given = lambda task, split, folder: EXAMPLES[task.data_set, split]
    monkeypatch.setattr(data, "read", given)


def of(**changes):
    return EXPERIMENT.set(SETTINGS | {f"source.{n}": x for n, x in changes.items()})


def test_nothing_is_trained_on_that_is_tested():
    log = []
    cola, mrpc = glue.read(of(), Resources(log=log.append))
    assert (cola.name, cola.classes) == ("cola", ("unacceptable", "acceptable"))
    assert len(cola.labels) == 49 and cola.num_tests == 9
    assert cola.sentences[:2] == ["The 0 is. ", "The 1 is. "]
    assert cola.sentences[-9:] == EXAMPLES["glue/cola", "validation"].sentences
    assert cola.labels[-9:] == [0, 1, 1] * 3
    assert ("7 is.", "Is 7?") not in mrpc.sentences
    assert len(mrpc.labels) == 39 + 7 and mrpc.num_tests == 7
    assert log == ["1 training examples of mrpc repeat a test"]


def test_examples_beyond_a_maximum_are_left_out_at_random():
    cut = of(tasks=("cola",), train_examples=12, test_examples=8)
    (task,) = glue.read(cut, Resources())
    train, known = EXAMPLES["glue/cola", "train"], EXAMPLES["glue/cola", "validation"]
    assert len(task.labels) == 20 and task.num_tests == 8
    assert len({*task.sentences[:12]} & {*train.sentences}) == 12
    assert task.sentences[:12] != train.sentences[:12]
    assert len({*task.sentences[12:]} & {*known.sentences}) == 8
    pairs = {*zip(train.sentences, train.labels, strict=True)}
    assert {*zip(task.sentences[:12], task.labels, strict=False)} <= pairs
    assert glue.read(cut, Resources()) == [task]


def test_a_roberta_reads_pairs_and_every_client_is_tested_on_all_its_classes(tmp_path):
    small.roberta(tmp_path)
    experiment = of(checkpoint=str(tmp_path))
    tasks = glue.read(experiment, Resources())
    problem = sentences.problem(experiment, tasks, Resources())
    federation = problem.federations["0.5", 0]
    pool, labels = federation.pool, np.asarray(federation.pool.labels)
    tokens, count, _ = map(np.asarray, pool.inputs.sentences)
    of_pairs = np.arange(len(labels)) >= 49
    ends = [list(row[:n]).count(2) for row, n in zip(tokens, count, strict=True)]
    np.testing.assert_array_equal(ends, np.where(of_pairs, 3, 1))  # </s>
    tests = {*range(40, 49), *range(88, 95)}
    for client in range(2):
        mine = federation.train.index[client, : federation.train.count[client]]
        assert not tests & {*mine.tolist()}
        weight = np.asarray(federation.test.weight[client])
        tested = np.asarray(federation.test.index[client])[weight > 0]
        assert {*tested.tolist()} == {n for n in tests if labels[n] in labels[mine]}
    adapter = problem.adapter(jax.random.key(0))
    assert adapter["head"]["kernel"].shape == (32, 4)
    assert adapter["pooler"]["kernel"].shape == (32, 32)
    assert problem.form.task == "SEQ_CLS"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": ()}, "source.tasks is empty"),
        ({"tasks": ("wnli",)}, "source.tasks is wnli: it must be one of sst2, qnli"),
        ({"tasks": ("rte", "rte")}, "source.tasks is rte rte: it must be distinct"),
        ({"train_examples": 8}, "source.train_examples is 8"),
        ({"test_examples": 1}, "source.test_examples is 1"),
        ({"context": 4}, "source.context is 4"),
    ],
)
def test_an_invalid_setting_is_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        of(**changes).check()
