"""Examples of text as arrays of tokens, and the tokenizers.

Dimension letters: `P` examples, `O` options, `L` tokens, `A` tokens of the longest
answer, its end among them.

A sequence is `begin, prompt, answer, end`. Where it is longer than the context with the
longest of its options, the prompt loses its front: the question stands at its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from potara_jax.data.text import Example

_ROUND_UP = 8
SPECIAL = "<pad>", "<begin>", "<end>"


class Tokenizer(NamedTuple):
    """`encode(text) -> tokens` and `decode(tokens) -> text`, without special tokens.

    size: of the vocabulary. pad, begin, end: special tokens; `begin` may be None.
    file: its `tokenizer.json`.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    size: int
    pad: int
    begin: int | None
    end: int
    file: str


def of_bytes() -> Tokenizer:
    """A token a byte of UTF-8, after the special ones."""
    import tokenizers

    letters = [letter for letter, _ in sorted(_letters().items(), key=lambda x: x[1])]
    vocabulary = {token: n for n, token in enumerate((*SPECIAL, *letters))}
    made = _with_bytes(tokenizers.models.BPE(vocabulary, []))
    made.add_special_tokens(list(SPECIAL))
    return _wrapped(made, pad=0, begin=1, end=2)


def trained(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-pair encoding with `size` tokens, learned from texts."""
    from tokenizers import models, pre_tokenizers, trainers

    made = _with_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return _wrapped(made, pad=0, begin=1, end=2)


def _with_bytes(model):
    """A tokenizer of texts as bytes, which it writes as letters."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _letters() -> dict[str, int]:
    """The byte that each letter of a byte-level tokenizer stands for (as in GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(other)}


def from_folder(folder: str | os.PathLike[str], config: dict) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, by its `tokenizer.json`.

    config: the model's `config.json`, which names the special tokens. Raises
    `ValueError` where the vocabulary does not fit the model's.
    """
    import tokenizers

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tokenizer.json; download it again")
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this alone
        raise ValueError(f"{path} is no tokenizer ({error})") from None
    made.no_truncation()
    made.no_padding()
    last = max(made.get_vocab(with_added_tokens=True).values(), default=-1)
    size = config["vocab_size"]
    if last >= size:
        raise ValueError(
            f"{path} has a token {last}, but the model only {size} tokens: it is "
            "another's"
        )
    end, begin = _first(config["eos_token_id"]), config.get("bos_token_id")
    pad = config.get("pad_token_id")
    for token in (end, *(x for x in (begin, pad) if x is not None)):
        if not isinstance(token, int) or not 0 <= token < size:
            told = f"a special token {token!r}, but {size} tokens"
            raise ValueError(f"{folder}/config.json has {told}: correct it")
        if token != pad and made.id_to_token(token) is None:
            told = f"the special token {token} of config.json: it is another model's"
            raise ValueError(f"{path} lacks {told}")
    return _wrapped(
        made,
        pad=end if pad is None else pad,
        begin=begin,
        end=end,
    )._replace(size=size)


def _first(token) -> int:
    return token[0] if isinstance(token, list) else token


def _wrapped(made, *, pad: int, begin: int | None, end: int) -> Tokenizer:
    return Tokenizer(
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda tokens: made.decode(list(tokens), skip_special_tokens=True),
        made.get_vocab_size(with_added_tokens=True),
        pad=pad,
        begin=begin,
        end=end,
        file=made.to_str(),
    )


class Choices(NamedTuple):
    """Prompts, and what may follow each of them.

    `prompt` `[P, L]`, padded behind, with room for any one of its options; `count`
    `[P]`: its tokens. `answers` `[P, O, A]`: the options' tokens, -1 behind them; an
    option that an example does not have is -1 throughout. `gold` `[P]`: which option is
    right. All int32.
    """

    prompt: np.ndarray
    count: np.ndarray
    answers: np.ndarray
    gold: np.ndarray


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, *, context: int
) -> tuple[Choices, int]:
    """All examples as arrays, and how many of them had to be cut.

    Raises `ValueError` where an answer alone does not fit the context, or a prompt is
    empty and the tokenizer has no token to begin with.
    """
    pairs = _tokenised(examples, tokenizer)
    if not all(prompt for prompt, _ in pairs):
        raise ValueError("a prompt is empty, and the tokenizer has no token to begin")
    longest, told = max(
        (len(answer), option)
        for (_, answers), example in zip(pairs, examples, strict=True)
        for answer, option in zip(answers, example.options, strict=True)
    )
    if longest >= context:
        raise ValueError(
            f"the answer '{told[:40]}' has {longest} tokens: the context of {context} "
            "must be longer"
        )
    needed = [_needed(*pair) for pair in pairs]
    length = min(context, -(-max(needed) // _ROUND_UP) * _ROUND_UP)
    most = max(len(example.options) for example in examples)
    choices = _empty(len(examples), length, (most, longest), tokenizer)
    for row, (prompt, options) in enumerate(pairs):
        kept = _cut(prompt, max(0, needed[row] - length), tokenizer)
        choices.prompt[row, : len(kept)], choices.count[row] = kept, len(kept)
        for option, answer in enumerate(options):
            choices.answers[row, option, : len(answer)] = answer
    choices.gold[:] = [example.gold for example in examples]
    return choices, sum(need > length for need in needed)


def lengths(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Tokens that every example needs with the longest of its options, and of that."""
    pairs = _tokenised(examples, tokenizer)
    return [(_needed(*pair), max(map(len, pair[1]))) for pair in pairs]


def _tokenised(examples, tokenizer) -> list[tuple[list[int], list[list[int]]]]:
    """Every example's prompt, and its options with their ends."""
    known: dict[str, list[int]] = {}
    for option in {option for example in examples for option in example.options}:
        known[option] = [*tokenizer.encode(f" {option}"), tokenizer.end]
    options = ([known[option] for option in example.options] for example in examples)
    prompts = (_prompt(example.prompt, tokenizer) for example in examples)
    return list(zip(prompts, options, strict=True))


def _needed(prompt: list[int], options: list[list[int]]) -> int:
    return len(prompt) + max(map(len, options)) - 1  # nothing is asked after the end


def _prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    return begin + tokenizer.encode(text)


def _empty(rows: int, length: int, answers: tuple[int, int], tokenizer) -> Choices:
    return Choices(
        np.full((rows, length), tokenizer.pad, np.int32),
        np.zeros(rows, np.int32),
        np.full((rows, *answers), -1, np.int32),
        np.zeros(rows, np.int32),
    )


def _cut(prompt: list[int], over: int, tokenizer: Tokenizer) -> list[int]:
    """A prompt without so many tokens of its front, behind the first of all."""
    kept = 0 if tokenizer.begin is None else 1
    return prompt[:kept] + prompt[kept + over :]


class Packed(NamedTuple):
    """Rows `R` of texts, one after another, for pre-training.

    `tokens`, `segment` `[R, L]`: which text of the row a token is of, from 1; -1 where
    there is none. `at` `[R, A]`: the positions before the tokens that are asked for;
    `answers` `[R, A]`: those tokens, -1 where there is none. All int32.
    """

    tokens: np.ndarray
    segment: np.ndarray
    at: np.ndarray
    answers: np.ndarray


def packed(choices: Choices) -> Packed:
    """The prompts with their right answers, as many as fit one after another a row.

    A row has the length of the prompts with an answer, and asks for all its answers.
    Texts fill the first row that has room for them, of those begun last.
    """
    right = choices.answers[np.arange(len(choices.gold)), choices.gold]
    texts = [
        (prompt[:count], answer[answer >= 0])
        for prompt, count, answer in zip(*choices[:2], right, strict=True)
    ]
    length = choices.prompt.shape[1]
    places = _placed([len(p) + len(a) - 1 for p, a in texts], length)
    row_of = [row for row, *_ in places]
    most = int(np.bincount(row_of, [len(answer) for _, answer in texts]).max())
    made = _rows(1 + max(row_of), length, most)
    put = np.zeros(1 + max(row_of), int)
    for (prompt, answer), (row, start, number) in zip(texts, places, strict=True):
        begun = start + len(prompt)
        here = slice(start, begun + len(answer) - 1)
        made.tokens[row, here] = np.concatenate([prompt, answer[:-1]])
        made.segment[row, here] = number + 1
        there = slice(put[row], put[row] + len(answer))
        made.at[row, there] = np.arange(begun - 1, here.stop)
        made.answers[row, there] = answer
        put[row] = there.stop
    return made


def _rows(rows: int, length: int, most: int) -> Packed:
    return Packed(
        np.zeros((rows, length), np.int32),
        np.full((rows, length), -1, np.int32),
        np.zeros((rows, most), np.int32),
        np.full((rows, most), -1, np.int32),
    )


_OPEN = 16


def _placed(used: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """Every text's row, its first place there, and which of the row's texts it is."""
    rows: list[tuple[int, int]] = []  # places taken, and texts
    found = []
    for size in used:
        begun = range(max(0, len(rows) - _OPEN), len(rows))
        row = next((r for r in begun if rows[r][0] + size <= length), len(rows))
        rows[row:] = rows[row:] or [(0, 0)]
        taken, texts = rows[row]
        rows[row] = taken + size, texts + 1
        found.append((row, taken, texts))
    return found
