from types import SimpleNamespace

import jax
import numpy as np
import pytest
from potara_jax.experiments import tasks

from potara_jax.experiment.methods import Cost, Method
from potara_jax.experiment.problem import Writer
from potara_jax.experiment.programs import writing
from potara_jax.experiment.writing import written
from potara_jax.reports import answers
from potara_jax.runs.store import Cell

CELL = Cell("tasks", 1)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    how = {"examples": 40, "base_steps": 1, "samples": 4, "rank": 2, "clients": 2}
    settings = tasks.Tasks(seeds=(1,), cache=cache, **how)
    return tasks.problem(settings, print)


def context(problem, write):
    programs, federation = SimpleNamespace(write=write), problem.federations[CELL]
    names = {"federation": federation, "problem": problem, "cell": CELL}
    return SimpleNamespace(programs=programs, **names)


def method(problem, name="potara core"):
    keys = jax.random.split(jax.random.key(0), 2)
    return Method(name, jax.vmap(problem.adapter)(keys), Cost())


def test_a_model_that_knows_half_of_the_answers_has_half_of_the_points(problem):
    federation = problem.federations[CELL]
    index = np.asarray(federation.test.index)
    right = np.asarray(federation.pool.inputs.answers)[index][:, :, 0]

    clients = iter(right)

    def write(base, adapter, prompts, counts, most):
        own = next(clients)
        assert prompts.shape[:1] == counts.shape == own.shape[:1]
        assert most == own.shape[-1]
        odd = np.arange(len(own)) % 2 == 1
        return np.where(odd[:, None], own, 1000)

    text = lambda tokens: " ".join(str(t) for t in tokens)
    known = problem._replace(writer=Writer(write, text, -1))
    (record,) = written(context(known, write), [method(problem)])
    half = (index.shape[1] // 2) / index.shape[1]
    for name in ("exact_match", "f1", "rouge_1"):
        assert record[name] == pytest.approx(half)
    first, second = record["samples"][:2]
    assert set(first["written"].split()) == {"1000"}
    assert second["written"] == second["right"] != ""
    assert answers.lines({"written": [record]})[0][:2] == [
        "one task a client",
        "potara core",
    ]
    page = answers.section({"written": [record, record | {"method": "local"}]})
    assert second["right"] in "".join(page)


def test_what_a_program_writes_is_what_greedy_decoding_writes(problem):
    """The decoder's answers are right where every token is the likeliest."""
    write = writing(problem.writer)
    (record,) = written(context(problem, write), [method(problem)])
    base, federation = problem.base, problem.federations[CELL]
    own = jax.tree.map(lambda x: x[0], method(problem).adapters)
    batch = jax.tree.map(lambda x: x[federation.test.index[0]], federation.pool)
    expected = problem.task.judge(base, own, batch)[1].mean()
    assert record["exact_match"] == pytest.approx(float(expected), abs=0.02)


def test_without_a_writer_nothing_is_written(problem):
    assert written(context(problem, None), [method(problem)]) == []
    assert answers.section({"written": []}) == answers.section({}) == []
