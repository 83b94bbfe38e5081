"""Examples of files of texts, before they are tokens."""

from pathlib import Path

import pytest

from potara_jax.data.text import Example
from potara_jax.experiment.problems import text_files


def example(prompt: str, *options: str, gold: int = 0) -> Example:
    return Example(prompt, options or ("x",), gold)


def test_every_text_is_kept_once_in_a_file_that_has_it():
    files = [[example(f"{x}") for x in numbers] for numbers in ((1, 2, 2, 3), (3, 4))]
    lines = []
    kept = text_files.without_repeats(files, seed=0, log=lines.append)
    assert sorted(x.prompt for x in kept[0] + kept[1]) == ["1", "2", "3", "4"]
    for before, after in zip(files, kept, strict=True):
        assert set(after) <= set(before)
    assert lines == ["2 examples repeat a text: each text is kept once"]


def test_the_seed_draws_which_file_keeps_a_text():
    files = [[example(f"{x}") for x in range(100)]] * 2
    silent = lambda line: None
    first, _ = text_files.without_repeats(files, seed=0, log=silent)
    again, _ = text_files.without_repeats(files, seed=0, log=silent)
    other, _ = text_files.without_repeats(files, seed=1, log=silent)
    assert first == again != other
    assert 25 < len(first) < 75


def test_a_text_is_known_by_its_options_where_they_differ_in_its_file():
    numbers = [*range(30), 3]
    differing = [example("Which is right?", "no", f"{i}", gold=1) for i in numbers]
    common = [example(f"Is it {i}?", "no", "yes", gold=i % 2) for i in numbers]
    lines = []
    kept = text_files.without_repeats([differing, common], seed=0, log=lines.append)
    assert [len(examples) for examples in kept] == [30, 30]
    assert lines[0].startswith("2 examples repeat a text")


def test_the_base_has_a_part_of_the_first_files_and_clients_have_the_rest():
    files = [[example(f"{task} {i}") for i in range(100)] for task in range(3)]
    paths = [Path(f"{task}.jsonl") for task in range(3)]
    split = lambda **options: text_files.split_tasks(files, paths, **options)
    upstream, tasks = split(seen=2, train=1000, seed=0)
    assert [len(examples) for examples in tasks] == [60, 60, 100]
    assert {x.prompt[0] for x in upstream} == {"0", "1"} and len(upstream) == 80
    assert not set(upstream) & {x for examples in tasks for x in examples}
    _, tasks = split(seen=2, train=30, seed=0)
    assert [len(examples) for examples in tasks] == [50, 50, 50]


def test_a_task_with_too_few_examples_is_named():
    files = [[example(f"{i}") for i in range(30)]]
    with pytest.raises(ValueError, match=r"a\.jsonl has 30 examples.* 18: they must"):
        text_files.split_tasks(files, [Path("a.jsonl")], seen=1, train=100, seed=0)


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
