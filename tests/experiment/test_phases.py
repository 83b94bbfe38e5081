import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import federated
from potara_jax.data.federation import Federation, Weighted
from potara_jax.experiment.phases import Budget, Phase, due_slots, run_phase, until
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.registry import algorithms
from potara_jax.federated.rounds import make_round
from potara_jax.federated.streaming import start_on_host
from potara_jax.runs import checkpoints as checkpoints_module
from potara_jax.runs.folder import RunFolder
from potara_jax.runs.store import Cell
from tests.helpers_federated import (
    assert_equal,
    poisoned,
    problem,
    small_batches,
    task,
)

pytestmark = pytest.mark.slow

CLIENTS = 2


def due(rounds, *, budget, final=0, marks=()):
    """The slots that each round fills, where one takes 30 bytes and 2 steps."""
    phase = Phase("any", None, rounds, marks=marks, budget=budget)
    line = {"bytes_up": 10, "bytes_down": 20, "steps": 2 * CLIENTS}
    slots = {
        number: due_slots(phase, [line] * number, clients=CLIENTS, final_bytes=final)
        for number in range(1, rounds + 1)
    }
    return {number: filled for number, filled in slots.items() if filled}


def test_marks_alone_without_a_budget():
    assert due(4, budget=None, marks=(1, 4)) == {1: [1], 4: [4]}


@pytest.mark.parametrize(
    ("budget", "final", "expected"),
    [
        (Budget(100, 5), 0, {3: [-1], 2: [-2]}),
        (Budget(100, 5), 20, {2: [-1, -2]}),  # the final models must fit too
        (Budget(90, 4), 0, {3: [-1], 2: [-2]}),  # a budget may be spent to the end
        (Budget(20, 1), 0, {}),  # the first round is too much
        (Budget(1000, 1000), 0, {}),  # it lasts longer than the rounds
    ],
)
def test_the_last_rounds_within_a_budget_are_scored(budget, final, expected):
    assert due(5, budget=budget, final=final) == expected


def test_a_mark_may_be_the_last_within_a_budget():
    assert due(5, budget=Budget(100, 5), marks=(2, 3)) == {2: [2, -2], 3: [3, -1]}


# --- Running phases -------------------------------------------------------------------

COUNTS, ROUNDS, KEY = (4, 2, 1, 3, 4, 2), 5, jax.random.key(0)
HALF, ALL = Conditions(cohort=3, dropout=0.2), Conditions()
CELL = Cell("0.1", 0)
GIVEN = problem(COUNTS)
CHOSEN = (0, 3, 4)


class Norms(NamedTuple):
    """Scores of some kind."""

    size: jax.Array
    weight: jax.Array


class Display:
    """What is shown; `stop`: a round after which the user interrupts."""

    def __init__(self, stop=None):
        self.skipped, self.lines, self.stop = 0, [], stop

    def skip(self, rounds):
        self.skipped += rounds

    def round(self, name, loss):
        self.lines.append(name)
        if len(self.lines) == self.stop:
            raise KeyboardInterrupt


@jax.jit
def evaluate(shared, models, test):
    size = sum(jnp.abs(x).sum((1, 2)) for x in jax.tree.leaves(models))
    return Norms(size, test.weight.sum(1))


def federation(given=GIVEN):
    clients = len(COUNTS)
    test = Weighted(jnp.zeros((clients, 2), jnp.int32), jnp.arange(12.0).reshape(6, 2))
    pool, train = given.shared.pool, given.examples
    return Federation(pool, train, train, test, jnp.ones((clients, 1)), jnp.arange(6))


def phase_of(name, **more):
    algorithm = algorithms()[name].make(task, small_batches)
    values = {"evaluate": evaluate, "marks": (2, 4, 5), "clients": CHOSEN} | more
    return Phase("federated", make_round(algorithm, conditions=HALF), ROUNDS, **values)


def begun(phase, place, folder):
    """The state before the first round, on the device or on the host."""
    algorithm, adapter = phase.algorithm, GIVEN.adapter
    if place == "device":
        adapters = federated.stack(adapter, clients=len(COUNTS))
        return federated.start(algorithm, adapters, KEY, phase.conditions)
    args = algorithm, GIVEN.shared, adapter, GIVEN.examples, KEY
    return start_on_host(*args, conditions=phase.conditions, folder=folder)


class Ran(NamedTuple):
    outcome: object
    display: Display
    warnings: list
    timed: list


def ran(phase, place, tmp_path, *, stop=None, given=GIVEN, name="run"):
    """A phase in a folder; `stop`: interrupted after that round is kept."""
    folder = tmp_path / f"{name}-{place}"
    folder.mkdir(exist_ok=True)
    warnings, timed, display = [], [], Display(stop)

    def on_round(record, seconds):
        assert seconds > 0
        timed.append(record["round"])

    outcome = run_phase(
        phase,
        begun(phase, place, folder / "states"),
        given.shared.base,
        federation(given),
        KEY,
        cell=CELL,
        store=RunFolder(folder, warnings.append),
        display=display,
        on_round=on_round,
    )
    return Ran(outcome, display, warnings, timed)


def results(outcome):
    marks = {n: mark._replace(seconds=0) for n, mark in outcome.marks.items()}
    kept = outcome.models, outcome.progress.server, outcome.shared, outcome.kept, marks
    return jax.tree.map(np.asarray, (*kept, outcome.final_bytes)), outcome.history


places = pytest.mark.parametrize("place", ["device", "host"])


@pytest.mark.parametrize("name", ["scaffold", "rolora", "fedsa"])
def test_states_on_the_host_give_the_outcome_of_those_on_the_device(name, tmp_path):
    phase = phase_of(name)
    device, host = (ran(phase, place, tmp_path) for place in ("device", "host"))
    assert_equal(results(host.outcome), results(device.outcome))
    assert list(device.outcome.marks) == [2, 4, 5]
    assert device.display.lines == [f"{CELL.name} federated"] * ROUNDS
    lines = [tmp_path / f"run-{place}/metrics.jsonl" for place in ("device", "host")]
    assert lines[0].read_text() == lines[1].read_text()


def test_some_clients_are_scored_as_among_all(tmp_path):
    some = ran(phase_of("fedsa", keep=(2,)), "host", tmp_path).outcome
    phase = phase_of("fedsa", clients=None, keep=(2,))
    everybody = ran(phase, "device", tmp_path).outcome
    pick = lambda tree: jax.tree.map(lambda x: x[np.array(CHOSEN)], tree)
    assert_equal(some.models, pick(everybody.models))
    assert_equal(some.kept[2], pick(everybody.kept[2]))
    for number, mark in some.marks.items():
        assert_equal(mark.scores, pick(everybody.marks[number].scores))
    assert until(everybody, 2).models is everybody.kept[2]
    assert len(until(everybody, 2).history) == 2


@places
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_phase_ends_with_the_same_results(place, stop, tmp_path):
    phase = phase_of("fedala", keep=(2,), budget=Budget(10**6, 8.0))
    expected = ran(phase, place, tmp_path, name="undisturbed")
    with pytest.raises(KeyboardInterrupt):
        ran(phase, place, tmp_path, stop=stop)
    again = ran(phase, place, tmp_path)
    assert again.display.skipped == stop
    assert_equal(results(again.outcome), results(expected.outcome))
    texts = [tmp_path / f"{n}-{place}/metrics.jsonl" for n in ("run", "undisturbed")]
    assert texts[0].read_text() == texts[1].read_text()
    finished = ran(phase, place, tmp_path)
    assert finished.timed == []
    assert_equal(results(finished.outcome), results(expected.outcome))


class Late(RunFolder):
    """A folder that notes which round is in the clients' states when it saves one."""

    def saver(self, cell, phase, checkpoint):
        keep = super().saver(cell, phase, checkpoint)

        def late():
            time.sleep(0.05)
            SEEN.append((checkpoint.round, STATES[0].rounds))
            keep()

        return late


SEEN, STATES = [], []


def test_states_on_the_host_stay_as_they_are_until_their_round_is_saved(tmp_path):
    SEEN.clear()
    progress = begun(phase_of("scaffold"), "host", tmp_path / "states")
    STATES[:] = [progress.states]
    run_phase(
        phase_of("scaffold"),
        progress,
        GIVEN.shared.base,
        federation(GIVEN),
        KEY,
        cell=CELL,
        store=Late(tmp_path, print),
        display=Display(None),
    )
    expected = [(number, number - 1) for number in range(1, ROUNDS + 1)]
    assert expected == SEEN


@places
def test_a_round_that_is_not_saved_when_the_run_dies_is_run_again(
    place, tmp_path, monkeypatch
):
    phase = phase_of("fedala", keep=(2,))
    expected = ran(phase, place, tmp_path, name="undisturbed")
    saver = checkpoints_module.saver

    def dies_in_the_third(folder, checkpoint):
        write = saver(folder, checkpoint)

        def die():
            raise OSError("the disk is full")

        return die if checkpoint.round == 3 else write

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "saver", dies_in_the_third)
        with pytest.raises(OSError, match="the disk is full"):
            ran(phase, place, tmp_path)
    again = ran(phase, place, tmp_path)
    if place == "device":
        assert again.display.skipped == 2
    assert_equal(results(again.outcome), results(expected.outcome))


def checkpoints(tmp_path, place):
    return tmp_path / f"run-{place}" / "checkpoints" / CELL.name / "federated"


@places
def test_a_damaged_last_round_is_run_again(place, tmp_path):
    phase = phase_of("scaffold")
    expected = ran(phase, place, tmp_path)
    for path in (checkpoints(tmp_path, place) / str(ROUNDS)).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    again = ran(phase, place, tmp_path)
    assert_equal(results(again.outcome), results(expected.outcome))
    started_over = any("starting over" in line for line in again.warnings)
    assert started_over == (place == "host")
    assert again.display.skipped == (0 if place == "host" else ROUNDS - 1)


def test_lost_states_on_the_host_are_noticed(tmp_path):
    phase = phase_of("scaffold")
    expected = ran(phase, "host", tmp_path)
    for path in (tmp_path / "run-host" / "states").iterdir():
        path.unlink()
    again = ran(phase, "host", tmp_path)
    assert any("starting over" in line for line in again.warnings)
    assert_equal(results(again.outcome), results(expected.outcome))


def test_lost_checkpoints_start_over_with_other_states_forgotten(tmp_path):
    phase = phase_of("scaffold")
    expected = ran(phase, "host", tmp_path)
    (tmp_path / "run-host" / "checkpoints").rename(tmp_path / "away")
    again = ran(phase, "host", tmp_path)
    assert_equal(results(again.outcome), results(expected.outcome))


def test_a_round_that_was_computed_while_models_were_scored_is_not_timed(tmp_path):
    phase = phase_of("fedit", marks=(2,))
    assert ran(phase, "host", tmp_path).timed == [1, 2, 4, 5]
    assert ran(phase, "device", tmp_path).timed == [1, 2, 3, 4, 5]


@places
def test_a_client_that_diverges_is_named_once(place, tmp_path):
    phase = phase_of("scaffold", marks=())
    phase = phase._replace(round=make_round(phase.algorithm, conditions=ALL))
    outcome, _, warnings, _ = ran(
        phase, place, tmp_path, given=poisoned(GIVEN, 1, np.nan)
    )
    assert [line["left_out"] for line in outcome.history] == [[1]] * ROUNDS
    (line,) = warnings
    assert "client 1 is left out from round 1 on" in line
    kept = (tmp_path / f"run-{place}" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text) for text in kept] == outcome.history
