"""Examples of files of texts, before they are tokens."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data.federation import Batch
from potara_jax.data.text import LABEL, Example
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import text_files, texts
from potara_jax.experiment.settings import Cells


def example(prompt: str, *options: str, gold: int = 0) -> Example:
    return Example(prompt, options or ("x",), gold)


def silent(line: str) -> None:
    """Discard a line."""


def test_every_text_is_kept_once_in_each_file_that_has_it():
    files = [[example(f"{x}") for x in numbers] for numbers in ((1, 2, 2, 3), (3, 4))]
    lines = []
    kept = text_files.without_repeats(files, log=lines.append)
    assert [[x.prompt for x in each] for each in kept] == [["1", "2", "3"], ["3", "4"]]
    assert lines[0] == "1 examples repeat a text of their task: the first is kept"
    assert lines[1].startswith("1 texts occur in several tasks")
    assert text_files.identities(kept).tolist() == [0, 1, 2, 2, 3]


def test_a_text_is_known_by_its_options_where_they_differ_in_its_file():
    numbers = [*range(30), 3]
    differing = [example("Which is right?", "no", f"{i}", gold=1) for i in numbers]
    common = [example(f"Is it {i}?", "no", "yes", gold=i % 2) for i in numbers]
    lines = []
    kept = text_files.without_repeats([differing, common], log=lines.append)
    assert [len(examples) for examples in kept] == [30, 30]
    assert lines[0].startswith("2 examples repeat a text")


def both(number: int, *labels: str) -> list[Example]:
    """Examples of the same texts, with labels of a task."""
    return [Example(f"text {i}{LABEL}", labels, i % len(labels)) for i in range(number)]


def test_the_same_texts_in_two_tasks_are_two_examples_on_one_side_of_every_split():
    files, lines = [both(300, "bad", "good"), both(300, "long", "short")], []
    paths = [Path("one.jsonl"), Path("two.jsonl")]
    kept = text_files.without_repeats(files, log=lines.append)
    upstream, tasks = text_files.split_tasks(
        kept, paths, seen=1, train=1000, seed=0, log=lines.append
    )
    assert [len(task) for task in tasks] == [180, 180] and len(upstream) == 120
    texts_of = lambda examples: {example.prompt for example in examples}
    assert texts_of(tasks[0]) == texts_of(tasks[1])
    assert not texts_of(tasks[0]) & texts_of(upstream)
    assert lines[-1].startswith("120 examples of two.jsonl are left out, as the base")
    cells = Cells((0, 1), ("tasks", "0.5"), clients=4)
    source = text_files.TextFiles(data=(Path("a"),))
    experiment = Experiment("", lambda *_: None, source=source, cells=cells)
    pool = Batch(jnp.zeros((360, 1)), jnp.zeros(360, jnp.int32))
    prompts = np.array([x.prompt for task in tasks for x in task])
    for federation in text_files.dealt(experiment, pool, tasks).values():
        taken = {
            name: {*prompts[np.asarray(part.index)[np.asarray(real)]]}
            for name, part, real in parts_of(federation)
        }
        assert not taken["test"] & (taken["train"] | taken["heldout"])
        assert not taken["train"] & taken["heldout"]
        tested = np.asarray(federation.test.index)[
            np.asarray(federation.test.weight) > 0
        ]
        assert {*(tested // 180)} == {0, 1}


def parts_of(federation):
    for name in ("train", "heldout"):
        part = getattr(federation, name)
        real = np.arange(part.index.shape[1]) < np.asarray(part.count)[:, None]
        yield name, part, real
    yield "test", federation.test, federation.test.weight > 0


def test_files_may_be_in_a_folder(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.txt", ".hidden.jsonl", "image.png"):
        (tmp_path / name).write_text("")
    source = text_files.TextFiles(data=(tmp_path, Path("c.tsv.gz")))
    assert source.names == ("a", "b", "c") and source.num_seen == 2
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "a.csv").unlink()
    assert text_files.TextFiles(data=(tmp_path,)).names == ("notes",)
    (tmp_path / "notes.txt").unlink()
    with pytest.raises(ValueError, match="holds no file of records"):
        _ = text_files.TextFiles(data=(tmp_path,)).names


@pytest.mark.parametrize("given", ["body", "text=", "other=body", "=x"])
def test_fields_that_are_no_names_of_roles_are_refused(given):
    source = text_files.TextFiles(data=(Path("a"),), fields=("label=stars", given))
    with pytest.raises(ValueError, match=f"source.fields is {given}: it must be ROLE"):
        texts.fields_of(source)


def test_the_base_has_a_part_of_the_first_files_and_clients_have_the_rest():
    files = [[example(f"{task} {i}") for i in range(100)] for task in range(3)]
    paths = [Path(f"{task}.jsonl") for task in range(3)]
    split = lambda **options: text_files.split_tasks(
        files, paths, log=silent, **options
    )
    upstream, tasks = split(seen=2, train=1000, seed=0)
    assert [len(examples) for examples in tasks] == [60, 60, 100]
    assert {x.prompt[0] for x in upstream} == {"0", "1"} and len(upstream) == 80
    assert not set(upstream) & {x for examples in tasks for x in examples}
    _, tasks = split(seen=2, train=30, seed=0)
    assert [len(examples) for examples in tasks] == [50, 50, 50]


def test_a_task_with_too_few_examples_is_named():
    files = [[example(f"{i}") for i in range(30)]]
    with pytest.raises(ValueError, match=r"a\.jsonl has 30 examples.* 18: they must"):
        text_files.split_tasks(
            files, [Path("a.jsonl")], seen=1, train=100, seed=0, log=silent
        )


@pytest.mark.parametrize(
    ("files", "options", "number"),
    [
        *((10, {}, 7), (3, {}, 2), (1, {}, 1)),
        *((3, {"seen": 3}, 3), (3, {"checkpoint": "x"}, 0)),
    ],
)
def test_the_base_sees_seven_of_ten_files_unless_it_is_set(files, options, number):
    data = tuple(Path(f"{task}.jsonl.gz") for task in range(files))
    source = text_files.TextFiles(data=data, **options)
    assert source.num_seen == number
    assert source.names == tuple(map(str, range(files)))
