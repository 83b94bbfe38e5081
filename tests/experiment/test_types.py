"""Settings of another type are refused by group and field, wherever they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest
from flax import linen as nn

import potara_jax as pj
from potara_jax.experiment.types import check_types, from_json, is_of
from potara_jax.experiments import digits

KEY = jax.random.key(0)
WRONG = {
    "cells.seeds": (0, "a tuple of whole numbers, such as (0,)"),
    "cells.heterogeneity": ("0.1", "a tuple of texts, such as ('0.1',)"),
    "cells.clients": (2.0, "a whole number, such as 2"),
    "lora.rank": ("4", "a whole number, such as 4"),
    "lora.alpha": (True, "a number, such as 1"),
    "lora.targets": ("query", "a tuple of texts, such as ('query',)"),
    "training.batch_size": (np.int64(4), "a whole number, such as 4"),
    "federated.ranks": ((2, "4"), "a tuple of whole numbers"),
    "participation.cohort": (2, "a text, such as '2'"),
    "participation.weighted": (1, "True or False"),
    "communication.compression": ("zip", "one of none, bfloat16, int8, top_k"),
    "communication.privacy_clip": ("1", "a number or None, such as 1"),
    "local.start": ("nope", "one of shared, independent, federated"),
    "merging.curvature_on": ("test", "one of train, heldout"),
    "compute.precision": ("float16", "one of float32, bfloat16, int8"),
    "compute.chunk": ("all", "a whole number or one of auto"),
    "pretraining.steps": (None, "a whole number"),
    "source.depth": ("3", "a whole number, such as 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_of_another_type_is_named_with_what_it_must_be(name):
    value, expected = WRONG[name]
    with pytest.raises(ValueError) as caught:
        digits.EXPERIMENT.set({name: value})
    assert str(caught.value) == f"{name} is {value!r}: it must be {expected}"


@pytest.mark.parametrize("name", WRONG)
def test_a_group_that_is_made_in_python_is_checked_in_the_same_way(name):
    value, _ = WRONG[name]
    group, field = name.split(".")
    known = getattr(digits.EXPERIMENT, group)
    with pytest.raises(ValueError, match=f"{name} is "):
        changed = dataclasses.replace(known, **{field: value})
        digits.EXPERIMENT.replace(**{group: changed})  # where a source is checked


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": None}, "source is None: it must be a HandwrittenDigits"),
        ({"source": pj.Lora()}, "it must be a HandwrittenDigits"),
        ({"pretraining": None}, "pretraining is None: it must be a Pretraining"),
        ({"lora": None}, "lora is None: it must be a Lora"),
        ({"lora": pj.Local()}, "it must be a Lora"),
        ({"name": 3}, "name is 3: it must be a text"),
        ({"make_problem": None}, "make_problem is None: it must be a Callable"),
        ({"source": 3, "make_problem": print}, "source is 3: it must be a dataclass"),
    ],
)
def test_a_group_is_replaced_by_one_of_its_type(changes, expected):
    with pytest.raises(ValueError, match=expected):
        digits.EXPERIMENT.replace(**changes)


def test_another_problem_may_have_another_source():
    changed = digits.EXPERIMENT.replace(make_problem=print, source=None)
    assert changed.source is None and not any(
        name.startswith("source.") for name in changed.settings()
    )


def test_the_settings_of_a_job_are_checked_before_anything_is_computed():
    for job, expected in {
        pj.Compare(algorithms="fedsa"): "compare.algorithms is 'fedsa': .* a tuple",
        pj.Simulate(scored=2.5): "simulate.scored is 2.5: it must be a whole number",
    }.items():
        with pytest.raises(pj.jobs.Refused, match=expected):
            pj.run(digits.EXPERIMENT, job, progress=False)


def test_personalise_refuses_another_group():
    task = pj.classification(nn.Dense(2))
    with pytest.raises(ValueError, match=r"lora is \{\}: it must be a Lora"):
        pj.personalise(task, None, _federation(), lora={}, key=KEY)
    with pytest.raises(ValueError, match="key is 7: it must be a key"):
        pj.personalise(task, None, _federation(), key=7)
    with pytest.raises(ValueError, match="task is a Dense: make one"):
        pj.personalise(nn.Dense(2), None, _federation(), key=KEY)
    with pytest.raises(ValueError, match=r"clients is a list: .* Federation\.of"):
        pj.personalise(task, None, [], key=KEY)


def test_a_name_is_no_experiment_and_a_class_no_job():
    for experiment, job, expected in (
        ("digits", None, "experiment is 'digits': it must be an Experiment"),
        (digits.EXPERIMENT, pj.Compare, r"it must be a job, such as Compare\(\)"),
        (digits.EXPERIMENT, "compare", "job is 'compare': it must be a job"),
    ):
        with pytest.raises(pj.jobs.Refused, match=expected):
            pj.run(experiment, job, progress=False)


def _federation() -> pj.Federation:
    client = np.ones((4, 2), np.float32), np.zeros(4, int)
    return pj.Federation.of([client], heldout=1, test=1, key=KEY)


# --- Types ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -3], [True, 1.0, "1", None, np.int32(1)]),
        (float, [0, 1.5, float("nan"), np.float64(2)], [False, "1", None, 1j]),
        (bool, [True], [1, 0, None, "on"]),
        (str, ["", "a"], [1, None, b"a", Path("a")]),
        (Path, [Path("a")], ["a", None]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0, None]),
        (int | None, [None, 3], ["3", 3.0, ()]),
        (int | Literal["auto"], ["auto", 3], ["all", None]),
        (tuple[int, ...], [(), (1, 2)], [[1], (1.5,), 1, "12"]),
        (tuple[str, int], [("a", 1)], [("a",), ("a", 1, 1), (1, "a")]),
        (tuple[Path, ...] | None, [None, (Path("a"),)], [("a",), Path("a")]),
        (dict[str, int], [{}], [[], None]),
        (Any, [None, 3, print], []),
    ],
)
def test_values_of_a_type_are_told_from_others(kind, good, bad):
    assert [value for value in good if not is_of(kind, value)] == []
    assert [value for value in bad if is_of(kind, value)] == []


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[Path, ...], ["a"], (Path("a"),)),
        (tuple[int, ...] | None, [1], (1,)),
        (Path | None, "a", Path("a")),
        (Path | str, "a", "a"),
        (int, [1], [1]),
        (str, "a", "a"),
        (int | None, None, None),
    ],
)
def test_json_has_lists_for_tuples_and_texts_for_paths(kind, value, expected):
    assert from_json(kind, value) == expected


def test_a_path_is_suggested_for_a_text():
    @dataclasses.dataclass
    class Source:
        data: Path

    with pytest.raises(ValueError, match=r"a path, such as Path\('a'\)$"):
        check_types(Source("a"), "source.")
