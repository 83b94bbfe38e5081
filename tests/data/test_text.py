import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potara_jax.data import generated, text, tokens
from potara_jax.data.text import Example


def bare(examples):
    """Examples without their places."""
    return [example._replace(place="") for example in examples]


def written(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def test_labelled_texts_have_all_labels_of_the_file_as_options(tmp_path):
    lines = [{"text": "good", "label": 10}, {"text": "bad", "label": 2}]
    first, second = bare(text.read(written(tmp_path / "a.jsonl", lines)))
    assert first == Example("good\nlabel:", ("2", "10"), 1)
    assert second.gold == 0


def test_choices_are_options(tmp_path):
    line = {"query": "which?", "choices": ["A", "B"], "gold": 1, "more": 3}
    path = written(tmp_path / "a.jsonl", [line])
    assert text.read(path) == [Example("which?", ("A", "B"), 1, f"{path}, line 1")]


def test_instructions_must_be_answered(tmp_path):
    line = {"instruction": "add", "input": "1 2", "output": "3", "answer": "x"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([line, line | {"input": ""}]))
    expected = [Example("add\n1 2\n", ("3",)), Example("add\n", ("3",))]
    assert bare(text.read(path)) == expected


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = b'{"text": "x", "label": "no"}\n\n{"text": "y", "label": "2"}\n'
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines))  # with its byte order mark
    options = ("2", "no")
    expected = [Example("x\nlabel:", options, 1), Example("y\nlabel:", options, 0)]
    assert bare(text.read(path)) == expected


def test_labels_of_several_files_are_those_of_one_task(tmp_path):
    lines = {"a": ['"b"', '"b"'], "b": ["1", '"1"'], "c": ["10", '"b"']}
    for name, labels in lines.items():
        rows = [f'{{"text": "x{i}", "label": {x}}}' for i, x in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    first, second, third = text.read_together(
        [tmp_path / f"{name}.jsonl" for name in lines]
    )
    assert {e.options for e in (*first, *second, *third)} == {("1", "10", "b")}
    assert [[e.gold for e in examples] for examples in (first, second, third)] == [
        [2, 2],
        [0, 0],
        [1, 2],
    ]
    with pytest.raises(ValueError, match="only the label 'b'"):
        text.read(tmp_path / "a.jsonl")


def test_a_text_may_be_empty_but_not_missing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "", "label": 1}\n{"text": "x", "label": 0}\n')
    assert [e.prompt for e in text.read(path)] == ["\nlabel:", "x\nlabel:"]


BAD = [
    (b'{"text": "x", "label": 1}\n{"text"', "line 2 is not JSON"),
    (b'{"text": "x", "label": 1}\n[1]', "line 2 is no JSON object"),
    (
        b'{"text": "x", "label": 1}\n{"text": "x"}',
        "line 2: label is missing; it must be a text",
    ),
    (b'{"text": 3, "label": 1}', "line 1: text is 3"),
    (b'{"text": "x", "label": 1}\n{"text": null, "label": 1}', "line 2: text is None"),
    (b'{"query": "x", "choices": ["a", "b"], "gold": 2}', "line 1: gold is 2"),
    (b'{"query": "x", "choices": ["a"], "gold": 0}', "choices must be two"),
    (b'{"query": "x", "choices": ["a", "a "], "gold": 0}', "two choices are equal"),
    (b'{"text": "\\ud800", "label": 1}', "line 1 is not JSON"),
    (b'{"instruction": "x", "output": ""}', "line 1: output is ''; it must be a text"),
    (b'{"instruction": "x", "output": " "}', "line 1: the output is blank"),
    (
        b'{"instruction": "x", "input": {}, "output": "y"}\n'
        b'{"instruction": "x", "input": {"a": 1}, "output": "y"}',
        "line 2: input is {'a': 1}; it must be a text",
    ),
    (b'{"text": "x", "label": " "}', "line 1: the label is blank"),
    (b'\n\n{"a": "x"}', "line 3 has a"),
    (
        b'{"question": "x"}',
        "line 1 has question: it needs text and label; or instruction",
    ),
    (b"\xff\xfe", "not UTF-8"),
    (b"", "holds no examples"),
]


@pytest.mark.parametrize(("content", "reason"), BAD)
def test_a_bad_record_is_named_with_its_line(tmp_path, content, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        text.read(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_damaged_archive_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        text.read(tmp_path / "a.jsonl")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}" * 99)[:20])
    with pytest.raises(ValueError, match="damaged"):
        text.read(path)
    whole = bytearray(gzip.compress(b"{}" * 99))
    whole[12] ^= 255
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="damaged"):
        text.read(path)


# --- Names of fields -----------------------------------------------------------------

GOOD = Example("x\nlabel:", ("bad", "good"), 1)
ROWS = [("x", "good"), ("y", "bad"), ("z", "good"), ("v", "bad")]


@pytest.mark.parametrize(
    ("text_name", "label_name"),
    [
        *(("sentence", "label"), ("Review", "Label"), ("content", "sentiment")),
        *(("sms", "category"), ("question", "class"), ("input", "target")),
    ],
)
def test_the_usual_names_of_texts_and_labels_are_read(tmp_path, text_name, label_name):
    lines = [{"idx": 3, text_name: x, label_name: y} for x, y in ROWS]
    assert bare(text.read(written(tmp_path / "a.jsonl", lines)))[0] == GOOD


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([True, False, True], ("false", "true")),
        ([2.0, 10, "1"], ("1", "2", "10")),
    ],
)
def test_labels_are_texts_numbers_or_truth_values(tmp_path, labels, options):
    lines = [{"text": "x", "label": label} for label in labels]
    assert text.read(written(tmp_path / "a.jsonl", lines))[0].options == options


FORMS = [
    ({"prompt": "p", "completion": "c"}, Example("p\n", ("c",))),
    ({"instruction": "p", "input": "", "output": 23}, Example("p\n", ("23",))),
    ({"question": "p", "context": "q", "answers": {"text": ["c", "d"]}}, None),
    (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "p"},
                {"role": "assistant", "content": "c"},
            ]
        },
        Example("s\np\n", ("c",)),
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "p"},
                {"from": "gpt", "value": "c"},
            ]
        },
        Example("p\n", ("c",)),
    ),
    (
        {
            "prompt": [{"role": "user", "content": "p"}],
            "completion": [{"role": "assistant", "content": "c"}],
        },
        Example("p\n", ("c",)),
    ),
    (
        {
            "question": "p",
            "choices": {"text": ["c", "d"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        Example("p", ("c", "d"), 1),
    ),
    ({"ctx": "p", "endings": ["c", "d"], "label": "1"}, Example("p", ("c", "d"), 1)),
    (
        {"question": "p", "options": ["c", "d", "e"], "answer": "C"},
        Example("p", ("c", "d", "e"), 2),
    ),
    (
        {"question": "p", "options": ["c", "d", "e"], "answer": "d"},
        Example("p", ("c", "d", "e"), 1),
    ),
]


@pytest.mark.parametrize(("line", "example"), FORMS)
def test_the_usual_forms_of_records_are_read(tmp_path, line, example):
    example = example or Example("p\nq\n", ("c",))
    assert bare(text.read(written(tmp_path / "a.jsonl", [line]))) == [example]


def test_pairs_of_sentences_are_read(tmp_path):
    lines = [
        {"premise": "a", "hypothesis": "b", "label": label, "idx": 1}
        for label in (0, 2)
    ]
    first, second = bare(text.read(written(tmp_path / "a.jsonl", lines)))
    expected = Example("a\nb\nlabel:", ("0", "2"), 0, pair=("a", "b"))
    assert first == expected and second.gold == 1


def test_other_names_are_given(tmp_path):
    lines = [{"id": "x", "body": x, "stars2": y} for x, y in ROWS]
    path = written(tmp_path / "a.jsonl", lines)
    with pytest.raises(ValueError, match=r"has body, id, stars2.*source\.fields"):
        text.read(path)
    fields = {"text": "body", "label": "stars2"}
    assert bare(text.read(path, fields=fields))[0] == GOOD
    with pytest.raises(ValueError, match=r"source\.fields names other"):
        text.read(path, fields={"text": "other"})


# --- Tables --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nx,good\ny,bad\n"),
        ("a.csv", "\ufeffLabel;Text\r\ngood;x\r\nbad;y\r\n"),
        ("a.tsv", "id\tlabel\tsentence\n1\tgood\tx\n2\tbad\ty\n"),
        ("a.txt", "good\tx\nbad\ty\ngood\tz\nbad\tv"),
        ("a.csv", "x,good\ny,bad\nz,good\nv,bad\n"),
        ("a.txt", '{"text": "x", "label": "good"}\n{"text": "y", "label": "bad"}'),
        ("a.txt", "__label__good x\n__label__bad y\n"),
        ("a.json", '{"text": ["x", "y"], "label": ["good", "bad"]}'),
        ("a.json", '{"data": [{"text": "x", "label": "good"}, {"text": "y", '
                   '"label": "bad"}]}'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", ".gz"])
def test_tables_and_other_files_are_read(tmp_path, name, content, end):
    path, data = tmp_path / f"{name}{end}", content.encode()
    path.write_bytes(gzip.compress(data) if end else data)
    lines = []
    assert bare(text.read(path, log=lines.append))[0] == GOOD
    guessed = "label" not in content.lower()
    assert len(lines) == guessed
    if guessed:
        assert "is taken for the label" in lines[0]


def test_cells_may_have_commas_quotes_and_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a, ""b""\nc",good\nd,bad\n')
    first, _ = text.read(path)
    assert first.prompt == 'a, "b"\nc\nlabel:' and first.place.endswith("line 3")
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"quoted" x\tgood\n"a ""b"""\tbad\n')
    prompts = [example.prompt for example in text.read(path)]
    assert prompts == ['"quoted" x\nlabel:', 'a "b"\nlabel:']


def test_columns_without_names_are_numbered(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,good,x\n2,bad,y\n")
    fields = {"text": "3", "label": "2"}
    assert bare(text.read(path, fields=fields))[0] == GOOD


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.csv",
            "ABOUT,MARK\nlong,1\nlonger,1\n",
            "source.fields, such as text=ABOUT",
        ),
        ("a.csv", "text,label\nx,good\ny\n", "line 3 has 1 columns, but the first"),
        ("a.csv", "text,label\nx,good\ny,\n", "line 3: the label is blank"),
        ("a.txt", "good x\nbad y\n", "it has one column"),
        ("a.csv", "PAR1", "is a file of Parquet"),
        ("a.json", '{"users": [], "user_data": {}}', "LEAF"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        text.read(path)
    assert str(path) in str(error.value)


# --- Tokens --------------------------------------------------------------------------

BYTES = tokens.of_bytes()
EXAMPLES = [Example("ab", ("c", "dd"), 1), Example("abcdefgh", ("c",))]


def test_prompts_and_options_are_encoded_separately():
    choices, cut = tokens.encode(EXAMPLES, BYTES, context=64)
    assert cut == 0 and choices.prompt.shape == (2, 16)
    assert BYTES.decode(choices.prompt[0]) == "ab"
    assert choices.prompt[0, 0] == BYTES.begin and list(choices.count) == [3, 9]
    assert list(choices.answers[0, 1]) == [*BYTES.encode(" dd"), BYTES.end]
    assert list(choices.answers[0, 0]) == [*BYTES.encode(" c"), BYTES.end, -1]
    assert (choices.answers[1, 1] == -1).all()  # an option that is not there
    assert list(choices.gold) == [1, 0]


def test_a_long_prompt_loses_only_its_beginning():
    choices, cut = tokens.encode(EXAMPLES, BYTES, context=8)
    assert cut == 1
    row, count = choices.prompt[1], choices.count[1]
    assert row[0] == BYTES.begin and BYTES.decode(row[:count]) == "defgh"
    assert count + len(BYTES.encode(" c")) == 8  # nothing is predicted after the end


def test_a_prompt_is_cut_for_its_longest_option():
    examples = [Example("abcdefgh", ("c", "ddd")), Example("abcdefgh", ("c",))]
    choices, cut = tokens.encode(examples, BYTES, context=10)
    kept = [BYTES.decode(row) for row in choices.prompt]
    assert cut == 2 and kept == ["defgh", "bcdefgh"]


def test_an_answer_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match="has 5 tokens: the context of 4 must be longer"
    ):
        tokens.encode([Example("a", ("bcd",))], BYTES, context=4)


def test_an_empty_prompt_needs_a_token_to_begin():
    nothing = [Example("", ("a",))]
    assert tokens.encode(nothing, BYTES, context=8)[0].count[0] == 1
    with pytest.raises(ValueError, match="a prompt is empty"):
        tokens.encode(nothing, BYTES._replace(begin=None), context=8)


def test_byte_pairs_are_learned_and_give_back_the_text():
    tokenizer = tokens.trained(["hello there"] * 50, 300)
    assert len(tokenizer.encode("hello there")) < 5
    assert tokenizer.decode(tokenizer.encode("héllo")) == "héllo"
    assert tokenizer.size <= 300


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}))
    made.save(str(tmp_path / "tokenizer.json"))
    config = {"vocab_size": 2, "eos_token_id": [1]}
    with pytest.raises(ValueError, match="has a token 2, but the model only 2 tokens"):
        tokens.from_folder(tmp_path, config)
    loaded = tokens.from_folder(tmp_path, config | {"vocab_size": 4})
    assert loaded.encode("b") == [1] and loaded.end == 1 and loaded.size == 4
    gap = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "z": 9}))
    gap.enable_truncation(1)
    gap.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has a token 9, but the model only 4 tokens"):
        tokens.from_folder(tmp_path, config | {"vocab_size": 4})
    gap.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    gap.save(str(tmp_path / "tokenizer.json"))
    whole = tokens.from_folder(tmp_path, config | {"vocab_size": 10})
    assert whole.encode("a b") == [0, 1]  # not cut as the file says
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="lacks the special token 3"):
        tokens.from_folder(tmp_path, {"vocab_size": 4, "eos_token_id": 3})
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        tokens.from_folder(tmp_path / "other", config)


# --- Generated tasks -----------------------------------------------------------------

RIGHT = {
    "sort": ("cab", "abc"),
    "sort down": ("cab", "cba"),
    "turn": ("abc", "cba"),
    "turn once": ("abc", "bca"),
    "sum": ("59+12", "71"),
    "digit": ("59+12", "1"),
    "edit": ("cable", "czbly"),
    "edit end": ("cab", "cabc"),
    "close": ("([", "])"),
    "close in order": ("([", ")]"),
    "date": ("24-03-05", "5 Mar"),
    "day": ("24-03-05", "5/3"),
    "find": ("a3 b7 c1 b", "7"),
    "place": ("a3 b7 c1 b", "2"),
    "unit": ("3 km m", "3000"),
    "size": ("3 cm mm", "30 mm"),
}


@pytest.mark.parametrize("task", generated.TASKS)
def test_generated_answers_are_right(task):
    given, answer = RIGHT[task]
    assert generated.TASKS[task].answer(given) == answer


def test_generated_examples_are_all_different_and_of_the_seed():
    make = lambda seed: generated.generate(np.random.default_rng(seed), "unit", 300)
    assert len({example.prompt for example in make(0)}) == 300
    assert make(0) == make(0) != make(1)
    with pytest.raises(ValueError, match="fewer than 9000"):
        generated.generate(np.random.default_rng(0), "unit", 9000)


def test_long_inputs_are_longer():
    rng = np.random.default_rng(0)
    for task in generated.TASKS:
        sizes = [
            max(len(x.prompt) for x in generated.generate(rng, task, 150, long=long))
            for long in (False, True)
        ]
        assert sizes[0] <= sizes[1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1))
def test_packed_rows_hold_every_text_once(sizes):
    examples = [
        Example("p" * prompt, ("a" * answer + str(number),))
        for number, (prompt, answer) in enumerate(sizes)
    ]
    choices, _ = tokens.encode(examples, tokens.of_bytes(), context=40)
    packed = tokens.pack_texts(choices)
    texts = []
    for row in range(len(packed.tokens)):
        for number in range(1, packed.segment[row].max() + 1):
            here = np.flatnonzero(packed.segment[row] == number)
            assert (np.diff(here) == 1).all()
            answered = np.isin(packed.at[row], here) & (packed.answers[row] >= 0)
            at = packed.at[row, answered] - here[0]
            answer = packed.answers[row, answered]
            texts.append((tuple(packed.tokens[row, here]), tuple(at), tuple(answer)))
    expected = []
    for prompt, count, (answer,), _ in zip(*choices[:4], strict=True):
        answer = answer[answer >= 0]
        read = (*prompt[:count], *answer[:-1])
        at = count - 1 + np.arange(len(answer))
        expected.append((read, tuple(at), tuple(answer)))
    assert sorted(texts) == sorted(expected)


def test_lines_end_where_json_lines_do(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = '{"text": "a\x85b\u2028c", "label": 1}\n{"text": "a", "label": 2}\n'
    path.write_text(rows, encoding="utf-8")
    assert text.read(path)[0].prompt.startswith("a\x85b\u2028c")
