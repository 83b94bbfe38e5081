from types import SimpleNamespace

import jax
import numpy as np
import pytest

from potara_jax.experiment.problem import Resources, Writer
from potara_jax.experiment.rows import Cost, Row
from potara_jax.experiment.written import writing, written
from potara_jax.experiments import tasks
from potara_jax.reports import answers
from potara_jax.runs.store import Cell
from tests.jobs.tiny import TASKS

CELL = Cell("tasks", 1)
SMALL = tasks.EXPERIMENT.set(TASKS)


@pytest.fixture(scope="module")
def problem():
    return tasks.make_problem(SMALL, Resources())


def context(problem, write):
    """What `written` needs of a cell; `write` is the compiled writer."""
    programs = SimpleNamespace(once=lambda name, make: write)
    federation = problem.federations[CELL]
    return SimpleNamespace(
        programs=programs, federation=federation, problem=problem, cell=CELL
    )


def row(problem, name="potara core"):
    keys = jax.random.split(jax.random.key(0), 2)
    return Row(name, jax.vmap(problem.adapter)(keys), Cost())


def test_a_model_that_knows_half_of_the_answers_scores_one_half(problem):
    federation = problem.federations[CELL]
    index = np.asarray(federation.test.index)
    clients = iter(np.asarray(federation.pool.inputs.answers)[index][:, :, 0])

    def write(base, adapter, prompts, counts, length):
        right = next(clients)
        assert prompts.shape[:1] == counts.shape == right.shape[:1]
        assert length == right.shape[-1]
        odd = np.arange(len(right)) % 2 == 1
        return np.where(odd[:, None], right, 1000)

    text = lambda tokens: " ".join(str(t) for t in tokens)
    known = problem._replace(writer=Writer(write, text, -1))
    (record,) = written(context(known, write), [row(problem)])
    half = (index.shape[1] // 2) / index.shape[1]
    for name in ("exact_match", "f1", "rouge_1"):
        assert record[name] == pytest.approx(half)
    first, second = record["samples"][:2]
    assert set(first["written"].split()) == {"1000"}
    assert second["written"] == second["right"] != ""
    table = answers.table({"written": [record]})
    assert table.groups[0].title == "one task or transformation per client"
    assert table.groups[0].rows[0].texts[0] == "potara core"
    sections = answers.sections({"written": [record, record | {"method": "local"}]})
    rows = [row for group in sections[0].parts[-1].groups for row in group.rows]
    assert any(second["right"] in row.texts for row in rows)


def test_what_a_program_writes_is_what_greedy_decoding_writes(problem):
    """The decoder's answers are right where every token is the likeliest."""
    write = writing(problem.writer)
    (record,) = written(context(problem, write), [row(problem)])
    base, federation = problem.base, problem.federations[CELL]
    first = jax.tree.map(lambda x: x[0], row(problem).models)
    batch = jax.tree.map(lambda x: x[federation.test.index[0]], federation.pool)
    expected = problem.task.judge(base, first, batch)[1].mean()
    assert record["exact_match"] == pytest.approx(float(expected), abs=0.02)


def test_methods_that_are_not_shown_do_not_write(problem):
    assert written(context(problem, None), [row(problem, "ties")]) == []


def test_without_a_writer_nothing_is_written(problem):
    silent = problem._replace(writer=None)
    assert written(context(silent, None), [row(problem)]) == []
    assert answers.sections({"written": []}) == answers.sections({}) == []
