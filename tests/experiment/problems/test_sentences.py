"""A problem of sentences: their files, their labels, and what an encoder reads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data import glue
from potara_jax.data.federation import Batch
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import sentence_files, sentences
from potara_jax.experiment.problems.sentence_files import SentenceFiles, SentenceTask
from potara_jax.experiments.sentences import EXPERIMENT
from potara_jax.models import bert, weights
from potara_jax.models.bert import Bert, Sentences
from tests import small

SETTINGS = {
    "cells.seeds": (0,),
    "cells.clients": 3,
    "merging.samples": 4,
    "lora.rank": 2,
    "lora.targets": ("query", "up"),
}


def distinct(texts, number):
    """Sentences that end in numbers, which the vocabulary does not have."""
    return [f"{text} {n}" for n in range(number) for text in texts]


TASKS = [
    SentenceTask(
        "mood",
        ("no", "yes"),
        distinct(["bad film", "good film is fine"], 20),
        [0, 1] * 20,
    ),
    SentenceTask(
        "what",
        ("a", "b", "c"),
        distinct(["who is", "where", "why is"], 10),
        [0, 1, 2] * 10,
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "bert"
    small.encoder(folder)
    return folder


@pytest.fixture(scope="module")
def problem(folder):
    experiment = EXPERIMENT.set(SETTINGS | {"source.checkpoint": str(folder)})
    return sentences.problem(experiment, TASKS, Resources())


def test_a_sentence_is_classified_among_the_classes_of_its_task(problem):
    adapter = problem.adapter(jax.random.key(0))
    head = {"kernel": jnp.zeros((32, 5)), "bias": jnp.array([1.0, 2.0, 3.0, 9.0, 4.0])}
    adapter |= {"head": head}
    pool = problem.federations["tasks", 0].pool
    logits = np.asarray(jax.jit(problem.task.logits)(problem.base, adapter, pool))
    of_first = np.asarray(pool.inputs.task) == 0
    assert set(np.argmax(logits[of_first], -1)) == {1}
    assert set(np.argmax(logits[~of_first], -1)) == {3}
    chances = np.asarray(jax.nn.softmax(logits))
    assert (chances[of_first, 2:] == 0).all() and (chances[~of_first, :2] == 0).all()
    labels = np.asarray(pool.labels)
    assert set(labels[of_first]) == {0, 1} and set(labels[~of_first]) == {2, 3, 4}


def test_a_loss_and_its_gradient_are_finite_and_leave_other_tasks_alone(problem):
    pool = problem.federations["tasks", 0].pool
    batch = jax.tree.map(lambda x: x[:4], pool)
    adapter = problem.adapter(jax.random.key(0))
    loss = lambda adapter: problem.task.objective(problem.base)(adapter, batch)
    gradient = jax.jit(jax.grad(loss))(adapter)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    kernel = np.asarray(gradient["head"]["kernel"])
    assert (kernel[:, 2:] == 0).all() and np.abs(kernel[:, :2]).max() > 0


def test_padding_adds_nothing_to_what_modules_read(problem):
    pool = problem.federations["tasks", 0].pool
    batch = jax.tree.map(lambda x: x[:4], pool)
    adapter = problem.adapter(jax.random.key(0))
    rows = jax.jit(problem.task.inputs)(problem.base, adapter, batch)
    count, length = batch.inputs.sentences.count, batch.inputs.sentences.tokens.shape[1]
    real = (np.arange(length) < np.asarray(count)[:, None]).ravel()
    assert set(rows) == {
        f"layer_{i}/{x}" for i in (0, 1) for x in ("attention/query", "mlp/up")
    }
    for x in map(np.asarray, rows.values()):
        assert (x[~real] == 0).all() and (np.abs(x[real]).max(-1) > 0).all()


def test_a_head_is_new_and_a_pooler_is_that_of_the_files_if_they_have_one(
    folder, tmp_path
):
    config = bert.config_of(weights.read_config(folder), classes=4, pooling="pooler")
    params = sentences.read(folder, config)
    assert (params["head"]["kernel"] == 0).all() and params["head"]["bias"].shape == (
        4,
    )
    drawn = params["pooler"]["kernel"]
    assert 0.01 < float(drawn.std()) < 0.03 and (params["pooler"]["bias"] == 0).all()
    stored = params | {"pooler": jax.tree.map(lambda x: x + 1, params["pooler"])}
    description = bert.description_of(config, names="abcd")
    weights.save(tmp_path, stored, bert.table_of(config), description)
    again = sentences.read(tmp_path, config)
    np.testing.assert_array_equal(again["pooler"]["kernel"], drawn + 1)
    model, inputs = Bert(config), Sentences(jnp.ones((1, 4), int), jnp.array([4]))
    assert model.apply({"params": again}, inputs).shape == (1, 4)


def test_long_sentences_are_cut_and_counted(folder):
    experiment = EXPERIMENT.set(
        SETTINGS | {"source.checkpoint": str(folder), "source.context": 8}
    )
    long = TASKS[0]._replace(sentences=["good " * 9, *TASKS[0].sentences[1:]])
    lines = []
    sentences.problem(experiment, [long, TASKS[1]], Resources(log=lines.append))
    assert lines == [
        "1 of 70 sentences have more than 8 tokens: they lost their ends "
        "(source.context)"
    ]


def test_a_checkpoint_of_another_model_is_refused(folder, tmp_path):
    other = small.with_config(folder, tmp_path / "other", {"model_type": "gpt2"})
    experiment = EXPERIMENT.set(SETTINGS | {"source.checkpoint": str(other)})
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'gpt2'"):
        sentences.problem(experiment, TASKS, Resources())


# --- Files ---------------------------------------------------------------------------


def write(path, texts, labels=("no", "yes")):
    records = [
        {"text": text, "label": labels[n % len(labels)]} for n, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_files_of_one_name_are_one_task_and_a_sentence_is_kept_once(tmp_path):
    numbers = [f"sentence {n}" for n in range(30)]
    write(tmp_path / "a.train.jsonl", numbers)
    write(tmp_path / "a.test.jsonl", ["more", "and more"], labels=("maybe",))
    write(tmp_path / "b.jsonl", [f"other {n}" for n in range(30)] + numbers[:1])
    lines = []
    experiment = EXPERIMENT.set({"source.data": (tmp_path,)})
    tasks = sentence_files.read(experiment, Resources(log=lines.append))
    assert [(task.name, task.classes) for task in tasks] == [
        ("a", ("maybe", "no", "yes")),
        ("b", ("no", "yes")),
    ]
    texts = [x for task in tasks for x in task.sentences]
    assert len(texts) == 63 and len(set(texts)) == 62
    assert {*numbers, "more", "and more"} <= set(tasks[0].sentences)
    first = dict(zip(tasks[0].sentences, tasks[0].labels, strict=True))
    assert first["more"] == 0 and {first.get("sentence 2"), first["sentence 3"]} == {
        1,
        2,
    }
    assert lines == [
        "1 texts occur in several tasks: all clients train on such a text, or are "
        "tested on it, or neither"
    ]


def test_two_sentences_of_a_file_are_a_pair_to_the_model(tmp_path):
    rows = [
        {"premise": f"film {n}", "hypothesis": "a\nplot", "label": n % 2}
        for n in range(30)
    ]
    (tmp_path / "nli.jsonl").write_text("\n".join(map(json.dumps, rows)))
    experiment = EXPERIMENT.set({"source.data": (tmp_path,)})
    (task,) = sentence_files.read(experiment, Resources())
    assert len(task.sentences) == 30
    for sentence, label in zip(task.sentences, task.labels, strict=True):
        first, second = sentence
        assert second == "a\nplot" and int(first.split()[1]) % 2 == label


def test_without_files_the_tasks_are_public(monkeypatch):
    def given(task, split, folder):
        numbers = range(40 if split == "train" else 10)
        texts = [f"{task.data_set} {split} {n}" for n in numbers]
        return glue.Labelled(texts, [n % len(task.classes) for n in numbers])

    monkeypatch.setattr(glue, "read", given)
    tasks = sentence_files.read(EXPERIMENT, Resources())
    assert [(task.name, len(task.classes)) for task in tasks] == [
        ("sst2", 2),
        ("trec", 6),
    ]
    sst2 = dict(zip(tasks[0].sentences, tasks[0].labels, strict=True))
    assert len(sst2) == 50 and sst2["glue/sst2 validation 3"] == 1
    (cola,) = sentence_files.read(
        EXPERIMENT.set({"source.tasks": ("cola",)}), Resources()
    )
    assert cola.name == "cola" and cola.num_tests == 0
    assert sentence_files.files_of(EXPERIMENT) == []
    with pytest.raises(ValueError, match=r"source\.tasks is mr: it must be .*trec"):
        EXPERIMENT.set({"source.tasks": ("mr",)}).check()


def test_the_user_is_told_which_tasks_there_are(tmp_path):
    write(tmp_path / "a.jsonl", ["x", "y"])
    (tmp_path / "b.jsonl").write_text(
        '{"query": "?", "choices": ["a", "b"], "gold": 0}'
    )
    source = SentenceFiles(data=(tmp_path,))
    assert list(sentence_files.find(source)) == ["a"]
    with pytest.raises(ValueError, match=r"source\.tasks is c: it must be among a, b"):
        sentence_files.find(SentenceFiles(data=(tmp_path,), tasks=("c",)))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match="of records with text and label"):
        sentence_files.find(source)


def test_clients_have_the_classes_of_their_examples():
    labels = np.arange(120) % 4
    inputs = sentences.Inputs(
        Sentences(jnp.zeros((120, 8), jnp.int32), jnp.ones(120, jnp.int32)),
        jnp.asarray(labels // 2, jnp.int32),
    )
    pool = Batch(inputs, jnp.asarray(labels, jnp.int32))
    experiment = EXPERIMENT.set(
        SETTINGS | {"cells.clients": 4, "cells.heterogeneity": ("tasks", "1")}
    )
    cells = sentences.dealt(experiment, pool, labels // 2, same=np.arange(len(labels)))
    by_task = np.asarray(cells["tasks", 0].proportions)
    np.testing.assert_allclose(by_task.sum(1), 1)
    assert (by_task[::2, 2:] == 0).all() and (by_task[1::2, :2] == 0).all()
    assert (by_task[::2, :2] > 0.3).all() and (by_task[1::2, 2:] > 0.3).all()
    assert cells["1", 0].proportions.shape == (4, 4)
