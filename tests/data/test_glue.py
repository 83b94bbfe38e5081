"""GLUE's tasks are prepared from files as their authors publish them, and read."""

import pytest

from potara_jax.data import glue
from tests.data import raw_sets

FIRST = {
    "sst2": ("film 0", 0),
    "qnli": (("who is 0?", "0 is."), 0),
    "qqp": (("what is 0?", "0?"), 0),
    "mnli": (("p0", "h0"), 0),
    "rte": (("It is 0.", "0."), 0),
    "mrpc": (("The 0 is.", "It is the 0."), 0),
    "cola": ("The bee is 0.", 0),
}


@pytest.mark.parametrize("name", glue.TASKS)
def test_a_task_is_prepared_and_read(name, tmp_path, monkeypatch):
    task = glue.TASKS[name]
    given = raw_sets.TEXTS[task.data_set](tmp_path / "raw", 6)
    raw_sets.downloads(monkeypatch, given)
    train = glue.read(task, "train", tmp_path / "sets")
    assert FIRST[name] in zip(train.sentences, train.labels, strict=True)
    test = glue.read(task, task.test, tmp_path / "sets")
    for part in (train, test):
        assert sorted(part.labels) == sorted(n % len(task.classes) for n in range(6))
    shared = {*train.sentences} & {*test.sentences}
    assert len(shared) == (0 if name in ("cola", "mrpc") else 6)


def test_the_questions_of_trec_are_prepared_and_read(tmp_path, monkeypatch):
    raw_sets.downloads(monkeypatch, raw_sets.trec(tmp_path / "raw", 6))
    train = glue.read(glue.TREC, "train", tmp_path / "sets")
    test = glue.read(glue.TREC, "test", tmp_path / "sets")
    expected = ["What is train 0 ?", "What is 1 ?"]
    expected += [f"What is train {n} ?" for n in range(2, 6)]
    by_label = dict(zip(train.labels, train.sentences, strict=True))
    assert [by_label[n] for n in range(6)] == expected
    named = dict(zip(test.sentences, test.labels, strict=True))
    assert glue.TREC.classes[named["What is test 5 ?"]] == "NUM"


def test_classes_have_the_names_of_the_data_sets():
    from tensorflow_datasets.text import glue as published

    configs = {config.name: config for config in published.Glue.BUILDER_CONFIGS}
    for name, task in glue.TASKS.items():
        assert list(task.classes) == configs[name].label_classes
        assert set(task.fields) == {*configs[name].text_features}
