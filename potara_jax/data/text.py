"""Text tasks from the user's files: examples of a prompt, options, and the right one.

A file holds one task, as JSON or a table (see `records`). Its records have one of these
forms, under the usual names of their fields (`FORMS`):

    messages                         one option: what the assistant writes last
    query, choices, gold             options: the choices
    first, second, label             two sentences; options: all labels
    instruction, input, output       one option: the output
    text, label                      options: all labels of the file, or of all files

A label may be a text, a whole number, or true and false; a text may be empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potara_jax.data import records
from potara_jax.data.labels import by_number
from potara_jax.data.records import Record, Records

LABEL = "\nlabel:"  # between a text and its label
_SHOWN = 40  # letters of a value in a message

Keys = Mapping[str, str]  # a field's name in the file, by what it means
Log = Callable[[str], None]


class Example(NamedTuple):
    """A prompt, and the options that may follow it.

    Attributes:
      prompt: the text before the answer.
      options: possible answers. With one option there is nothing to choose: the model
        must write the answer.
      gold: the index of the right one.
      place: the file and the line that it comes from.
      pair: the two sentences that the prompt joins, where it does.
    """

    prompt: str
    options: tuple[str, ...]
    gold: int = 0
    place: str = ""
    pair: tuple[str, str] | None = None


def silent(line: str) -> None:
    """Discard a line for the user."""


def read(
    path: str | os.PathLike[str], *, fields: Keys | None = None, log: Log = silent
) -> list[Example]:
    """The examples of a file, in its order.

    Args:
      path: the file.
      fields: names of fields, such as `{"text": "review"}`, where they are not the
        usual ones.
      log: receives a line on what was guessed.

    Returns:
      The examples.

    Raises:
      ValueError: a record cannot be used (names the file, the line and the reason), or
        all records have the same label.
    """
    labelled, examples = read_one(Path(path), fields=fields or {}, log=log)
    if labelled and len(examples[0].options) == 1:
        label = examples[0].options[0]
        raise ValueError(f"{path} has only the label '{label}': a task has two or more")
    return examples


def read_together(
    paths: Sequence[str | os.PathLike[str]],
    *,
    fields: Keys | None = None,
    log: Log = silent,
) -> list[list[Example]]:
    """The examples of several files, whose labelled examples share all labels.

    Args:
      paths: of the files.
      fields: see `read`.
      log: receives lines for the user.

    Raises:
      ValueError: as `read` does, but that one file may have a single label.
    """
    return together(
        [read_one(Path(path), fields=fields or {}, log=log) for path in paths]
    )


def together(files: Sequence[tuple[bool, list[Example]]]) -> list[list[Example]]:
    """Examples of several files: whether they have labels, which then are all files'.

    Raises:
      ValueError: there is only one label.
    """
    labels = {x for labelled, mine in files if labelled for x in mine[0].options}
    options = tuple(sorted(labels, key=by_number))
    if len(options) == 1:
        raise ValueError(f"all files have only the label '{options[0]}'")

    def among_all(example: Example) -> Example:
        gold = options.index(example.options[example.gold])
        return example._replace(options=options, gold=gold)

    return [
        list(map(among_all, examples)) if labelled else examples
        for labelled, examples in files
    ]


def is_labelled(path: str | os.PathLike[str], *, fields: Keys | None = None) -> bool:
    """Whether a file's records have a text and a label."""
    rows, unnamed = records.read(Path(path), known_names(fields or {}))
    if unnamed:
        return True
    found = _form_of(rows[0][1], fields or {}) if rows else None
    return found is not None and found[0].labelled


def read_one(
    path: Path, *, fields: Keys, log: Log = silent
) -> tuple[bool, list[Example]]:
    """Whether a file's examples have labels, and the examples."""
    rows, unnamed = records.read(path, known_names(fields))
    if not rows:
        raise ValueError(f"{path} holds no examples")
    if unnamed and not fields:
        fields = _guessed(path, rows, log)
    return of_records(path, rows, fields=fields)


def of_records(
    path: Path, rows: Records, *, fields: Keys
) -> tuple[bool, list[Example]]:
    """Whether records have labels, and their examples.

    Args:
      path: where the records are from, for error messages.
      rows: the records.
      fields: see `read`.

    Raises:
      ValueError: a record cannot be used; the message names its line.
    """
    line, first = rows[0]
    chosen = _form_of(first, fields)
    if chosen is None:
        raise ValueError(f"{path}, line {line} {_unusable(first, fields)}")
    form, keys = chosen
    return form.labelled, form.make(path, rows, keys)


def of_labels(path: Path, texts: Sequence[str], labels: Sequence[Any]) -> list[Example]:
    """Labelled texts that are no records of a file; `path` is where they come from."""
    pairs = enumerate(zip(texts, labels, strict=True), 1)
    rows = [(number, {"text": text, "label": label}) for number, (text, label) in pairs]
    return _labelled(path, rows, {"text": "text", "label": "label"})


# --- The form of a file --------------------------------------------------------------


class Form(NamedTuple):
    """How records become examples.

    Attributes:
      names: the usual names of every field, by what it means.
      make: `(path, records, keys) -> examples`.
      optional: the same, of fields that may be missing.
      labelled: whether options are the labels of the file.
    """

    names: Mapping[str, Sequence[str]]
    make: Callable[[Path, Records, Keys], list[Example]]
    optional: Mapping[str, Sequence[str]] = {}
    labelled: bool = False


def known_names(fields: Keys) -> set[str]:
    """All names that a table's first line may have, in lower case."""
    roles = (names for form in FORMS for names in (form.names, form.optional))
    usual = {name for names in roles for each in names.values() for name in each}
    return usual | {name.lower() for name in fields.values()}


def _form_of(first: Record, fields: Keys) -> tuple[Form, Keys] | None:
    """The form of a file by its first record, and the names of its fields."""
    for form in FORMS:
        allowed = {*form.names, *form.optional}
        if not {*fields} <= allowed:
            continue
        keys = _keys(form.names, first, fields, ())
        if len(keys) == len(form.names):
            more = _keys(form.optional, first, fields, (*keys.values(),))
            return form, {**keys, **more}
    return None


def _keys(
    roles: Mapping[str, Sequence[str]],
    first: Record,
    fields: Keys,
    taken: Sequence[str],
) -> dict[str, str]:
    """The fields of a record that have the roles, where it has them."""
    lower = {name.strip().lower(): name for name in reversed(first)}
    keys: dict[str, str] = {}
    for role, names in roles.items():
        wanted = [fields[role].strip().lower()] if role in fields else names
        known = (lower[name] for name in wanted if name in lower)
        used = {*keys.values(), *taken, *fields.values()} - {fields.get(role)}
        key = next((name for name in known if name not in used), None)
        if key is not None:
            keys[role] = key
    return keys


def _unusable(first: Record, fields: Keys) -> str:
    """Why a record has no known form, and what to do."""
    has = ", ".join(sorted(first)) or "nothing"
    if missing := [name for name in fields.values() if name not in first]:
        return f"has {has}: source.fields names {', '.join(missing)}"
    forms = "; or ".join(" and ".join(form.names) for form in reversed(FORMS))
    return (
        f"has {has}: it needs {forms}; name the fields that stand for them with "
        "source.fields, such as text=abstract label=field"
    )


def _guessed(path: Path, rows: Records, log: Log) -> Keys:
    """Which columns of a table without names are the label and the text.

    The label has the fewest values, of which some repeat; the text is the longest.
    Raises `ValueError` if the first line looks like unknown names.
    """
    columns = {name: [row[name].strip() for _, row in rows] for name in rows[0][1]}
    label = min(columns, key=lambda name: len({*columns[name]}))
    others = [name for name in columns if name != label]
    text = max(others, key=lambda name: sum(map(len, columns[name])))
    first, *rest = columns[label]
    if first not in rest or len({*rest}) > max(2, len(rest) // 2):
        listed = ", ".join(values[0][:_SHOWN] for values in columns.values())
        raise ValueError(
            f"{path}: the first line is {listed}: if these are the names of columns, "
            "say which are the text and the label with source.fields, such as "
            f"text={columns[text][0][:_SHOWN]} label={first[:_SHOWN]}; if not, number "
            f"them: text={text} label={label}"
        )
    log(
        f"{path} does not name its columns: column {label} is taken for the label, and "
        f"column {text} for the text (source.fields)"
    )
    return {"text": text, "label": label}


# --- Examples ------------------------------------------------------------------------


def _labelled(path: Path, rows: Records, keys: Keys) -> list[Example]:
    prompts = [_text(path, *row, keys["text"], empty=True) for row in rows]
    return _with_labels(path, rows, prompts, keys)


def _pairs(path: Path, rows: Records, keys: Keys) -> list[Example]:
    """Two sentences, one below the other."""
    first, second = keys["first"], keys["second"]
    pairs = [(_text(path, *row, first), _text(path, *row, second)) for row in rows]
    examples = _with_labels(path, rows, ["\n".join(pair) for pair in pairs], keys)
    return [x._replace(pair=pair) for x, pair in zip(examples, pairs, strict=True)]


def _with_labels(
    path: Path, rows: Records, prompts: Sequence[str], keys: Keys
) -> list[Example]:
    labels = [_label(path, *row, keys["label"]) for row in rows]
    options = tuple(sorted({*labels}, key=by_number))
    places = {option: place for place, option in enumerate(options)}
    return [
        Example(f"{prompt}{LABEL}", options, places[label], _place(path, line))
        for (line, _), prompt, label in zip(rows, prompts, labels, strict=True)
    ]


def _choices(path: Path, rows: Records, keys: Keys) -> list[Example]:
    return [_choice(path, *row, keys) for row in rows]


def _choice(path: Path, line: int, record: Record, keys: Keys) -> Example:
    """A question with choices: a list, or an object of `text` and `label`, as ARC's."""
    place, name = _place(path, line), keys["choices"]
    given, marks = record.get(name), []
    if isinstance(given, Mapping) and isinstance(given.get("label"), list):
        given, marks = given.get("text"), given["label"]
    if not isinstance(given, list):
        raise ValueError(f"{place}: {_problem(record, name)}; it must be a list")
    if len(given) < 2 or not all(isinstance(option, str) for option in given):
        raise ValueError(f"{place}: {name} must be two texts or more")
    if len({option.strip() for option in given}) < len(given):
        raise ValueError(f"{place}: two {name} are equal: {given}")
    gold = _gold(place, record, keys["gold"], given, marks)
    prompt = _text(path, line, record, keys["query"])
    return Example(prompt, tuple(given), gold, place)


def _gold(
    place: str, record: Record, name: str, options: list[str], marks: list[Any]
) -> int:
    """The right choice: its number from 0, its mark, its letter or its text."""
    value = record.get(name)
    letters = [chr(ord("A") + number) for number in range(len(options))]
    for known in (marks, options, letters):
        if isinstance(value, str) and value in known:
            return known.index(value)
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool):
        expected = "the number of a choice from 0, or its letter or text"
        raise ValueError(f"{place}: {_problem(record, name)}; it must be {expected}")
    if not 0 <= number < len(options):
        raise ValueError(f"{place}: {name} is {value}: no choice has it")
    return number


def _instructions(path: Path, rows: Records, keys: Keys) -> list[Example]:
    return [_instruction(path, *row, keys) for row in rows]


def _instruction(path: Path, line: int, record: Record, keys: Keys) -> Example:
    name = keys["output"]
    if not record.get(name) and keys.get("instead") in record:
        name = keys["instead"]
    given = record.get(keys["instruction"])
    if isinstance(given, list) and isinstance(record.get(name), list):
        turns = {"messages": [*given, *record[name]]}
        return _conversation(path, line, turns, {"messages": "messages"})
    prompt = _text(path, line, record, keys["instruction"])
    if "input" in keys and record.get(keys["input"]):
        prompt = f"{prompt}\n{_text(path, line, record, keys['input'])}"
    answer = _answer(path, line, record, name)
    return Example(f"{prompt}\n", (answer,), 0, _place(path, line))


def _conversations(path: Path, rows: Records, keys: Keys) -> list[Example]:
    return [_conversation(path, *row, keys) for row in rows]


def _conversation(path: Path, line: int, record: Record, keys: Keys) -> Example:
    """What the assistant writes last, after all that comes before it."""
    place, name = _place(path, line), keys["messages"]
    turns = record.get(name)
    if not isinstance(turns, list) or not all(isinstance(x, dict) for x in turns):
        raise ValueError(f"{place}: {name} must be a list of objects")
    said = [
        (turn.get("role", turn.get("from")), turn.get("content", turn.get("value")))
        for turn in turns
    ]
    if len(said) < 2 or said[-1][0] not in _ASSISTANTS:
        raise ValueError(f"{place}: {name} must end with an answer of the assistant")
    if not all(isinstance(content, str) and content.strip() for _, content in said):
        raise ValueError(f"{place}: {name} must have texts for their content")
    prompt = "\n".join(content for _, content in said[:-1])
    return Example(f"{prompt}\n", (said[-1][1],), 0, place)


_ASSISTANTS = ("assistant", "gpt", "model", "bot")

# The first form whose fields a file's first record has is the file's.
FORMS: Sequence[Form] = (
    Form({"messages": ("messages", "conversations", "conversation")}, _conversations),
    Form(
        {
            "query": ("query", "question", "prompt", "ctx", "context"),
            "choices": ("choices", "options", "endings"),
            "gold": ("gold", "answer", "label", "answerkey", "answer_index"),
        },
        _choices,
    ),
    Form(
        {
            "first": ("premise", "sentence1", "question1", "text_a", "question"),
            "second": ("hypothesis", "sentence2", "question2", "text_b", "sentence"),
            "label": ("label", "labels", "gold_label", "is_duplicate", "class"),
        },
        _pairs,
        labelled=True,
    ),
    Form(
        {
            "instruction": ("instruction", "prompt", "question", "query", "input"),
            "output": ("output", "answer", "completion", "response", "answers"),
        },
        _instructions,
        optional={"input": ("input", "context"), "instead": ("answer", "completion")},
    ),
    Form(
        {
            "text": (
                *("text", "sentence", "review", "content", "document", "comment"),
                *("tweet", "message", "sms", "utterance", "body", "post", "headline"),
                *("question", "query", "prompt", "input", "instruction", "title"),
            ),
            "label": (
                *("label", "labels", "sentiment", "category", "class", "intent"),
                *("target", "topic", "tag", "emotion", "polarity", "stars", "rating"),
                "output",
            ),
        },
        _labelled,
        labelled=True,
    ),
)


# --- Fields --------------------------------------------------------------------------


def _place(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _problem(record: Record, name: str) -> str:
    return f"{name} is {record[name]!r}" if name in record else f"{name} is missing"


def _text(
    path: Path, line: int, record: Record, name: str, *, empty: bool = False
) -> str:
    """A field that is a text, and not empty unless it may be."""
    value = record.get(name)
    if isinstance(value, str) and (value or empty):
        return value
    raise ValueError(
        f"{_place(path, line)}: {_problem(record, name)}; it must be a text"
    )


def _label(path: Path, line: int, record: Record, name: str) -> str:
    """A label as text, without spaces around it."""
    value = record.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        expected = "a text, a whole number, or true or false"
        problem = _problem(record, name)
        raise ValueError(f"{_place(path, line)}: {problem}; it must be {expected}")
    label = str(value).lower() if isinstance(value, bool) else str(value).strip()
    if not label:
        raise ValueError(f"{_place(path, line)}: the {name} is blank")
    return label


def _answer(path: Path, line: int, record: Record, name: str) -> str:
    """An answer as text: a text, a number, or the first text of SQuAD's answers."""
    value = record.get(name)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = next(iter(value["text"]), "")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str) or value == "":
        problem, expected = _problem(record, name), "a text or a number"
        raise ValueError(f"{_place(path, line)}: {problem}; it must be {expected}")
    if not value.strip():
        raise ValueError(f"{_place(path, line)}: the {name} is blank")
    return value
