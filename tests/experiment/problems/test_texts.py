"""The context of a Llama of texts, and what it is pre-trained on."""

import numpy as np
import pytest

from potara_jax.data import tokens
from potara_jax.data.text import Example
from potara_jax.experiment.problems import texts

TOKENIZER = tokens.of_bytes()


def example(prompt: str, *options: str, gold: int = 0) -> Example:
    return Example(prompt, options or ("x",), gold)


def test_one_text_in_twenty_may_be_cut():
    short, long = example("ab " * 8, "c", "d"), example("ab " * 500, "c", "d")
    (needed, _), _ = tokens.lengths([short, long], TOKENIZER)
    choose = lambda *examples, context=None: texts.choose_context(
        examples, TOKENIZER, context
    )
    assert choose(*[short] * 19, long) == -(-needed // 8) * 8
    assert choose(*[short] * 18, long, long) == 128
    assert choose(*[short] * 18, long, long, context=40) == 40


def test_every_answer_fits_the_context():
    spoken = example("ab", "word " * 9)
    ((_, answer),) = tokens.lengths([spoken], TOKENIZER)
    context = texts.choose_context([example("ab")] * 39 + [spoken], TOKENIZER, None)
    assert answer < context < 128


def test_one_long_answer_in_twenty_is_left_out_and_named():
    long = example("ab", "word " * 100)._replace(place="a.jsonl, line 1")
    short, lines = [example("ab")] * 39, []
    everything = [long, *short]
    context = texts.choose_context(everything, TOKENIZER, None)
    assert context == 16
    kept = texts.fitting([everything, short], TOKENIZER, context, lines.append)
    assert kept == [short, short]
    assert lines == [
        "a.jsonl, line 1: the answer has 502 tokens, which exceeds the context of 16: "
        "1 of 79 examples are left out for that; source.context 510 keeps them"
    ]
    assert texts.fitting([everything], TOKENIZER, 510, lines.append) == [everything]
    with pytest.raises(
        ValueError, match=r"a\.jsonl, line 1.*set source\.context to 510"
    ):
        texts.fitting([[long], short[:9]], TOKENIZER, context, lines.append)


def test_rows_of_texts_ask_for_every_answer():
    examples = [
        example(f"{i} " * (1 + i % 5), "yes", "no", gold=i % 2) for i in range(9)
    ]
    choices, cut = tokens.encode(examples, TOKENIZER, context=64)
    rows = tokens.pack_texts(choices)
    right = choices.answers[np.arange(9), choices.gold]
    assert cut == 0 and (rows.answers >= 0).sum() == (right >= 0).sum()
