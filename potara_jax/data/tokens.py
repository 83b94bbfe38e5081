"""Examples of text as arrays of tokens, and the tokenizers.

Dimension letters: `P` examples, `O` options, `L` tokens, `A` tokens of the longest
answer, its end among them.

A sequence is `begin, prompt, answer, end`, padded behind. Where it is longer than the
context, the prompt loses its front: the question stands at its end.
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
    known, size = made.get_vocab_size(with_added_tokens=True), config["vocab_size"]
    if known > size:
        raise ValueError(
            f"{path} has {known} tokens, but the model only {size}: it is another's"
        )
    end, begin = _first(config["eos_token_id"]), config.get("bos_token_id")
    pad = config.get("pad_token_id")
    for token in (end, *(x for x in (begin, pad) if x is not None)):
        if not isinstance(token, int) or not 0 <= token < size:
            told = f"a special token {token!r}, but {size} tokens"
            raise ValueError(f"{folder}/config.json has {told}: correct it")
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
    """Examples that a model reads, an option a row.

    `tokens` `[P, O, L]`; `at` `[P, O, A]`: the positions before every token of the
    answer; `answers` `[P, O, A]`: those tokens, -1 where there is none; an option that
    an example does not have is -1 throughout. `gold` `[P]`. All int32. `segment`
    `[P, O, L]`: which of the texts that share a row a token is of; None: one a row.
    """

    tokens: np.ndarray
    at: np.ndarray
    answers: np.ndarray
    gold: np.ndarray
    segment: np.ndarray | None = None


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, *, context: int
) -> tuple[Choices, int]:
    """All examples as arrays, and how many of them had to be cut.

    Raises `ValueError` where an answer alone does not fit the context.
    """
    prompts = [_prompt(example.prompt, tokenizer) for example in examples]
    known: dict[str, list[int]] = {}
    for option in {option for example in examples for option in example.options}:
        known[option] = [*tokenizer.encode(f" {option}"), tokenizer.end]
    longest = max(map(len, known.values()))
    if longest >= context:
        told = next(o for o, tokens in known.items() if len(tokens) == longest)
        raise ValueError(
            f"the answer '{told[:40]}' has {longest} tokens: the context of {context} "
            "must be longer"
        )
    answers = [[known[option] for option in example.options] for example in examples]
    pairs = list(zip(prompts, answers, strict=True))
    needed = [len(p) + max(map(len, options)) - 1 for p, options in pairs]
    length = min(context, -(-max(needed) // _ROUND_UP) * _ROUND_UP)
    choices = _empty(len(examples), max(map(len, answers)), length, longest, tokenizer)
    for row, (prompt, options) in enumerate(pairs):
        for option, answer in enumerate(options):
            _put(choices, (row, option), prompt, answer, tokenizer)
    choices.gold[:] = [example.gold for example in examples]
    return choices, sum(need > length for need in needed)


def _prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    return begin + tokenizer.encode(text)


def _empty(rows, options, length, longest, tokenizer) -> Choices:
    shape = rows, options
    return Choices(
        np.full((*shape, length), tokenizer.pad, np.int32),
        np.zeros((*shape, longest), np.int32),
        np.full((*shape, longest), -1, np.int32),
        np.zeros(rows, np.int32),
    )


def _put(choices: Choices, where, prompt, answer, tokenizer) -> None:
    length = choices.tokens.shape[-1]
    kept = 0 if tokenizer.begin is None else 1
    over = max(0, len(prompt) + len(answer) - 1 - length)
    prompt = prompt[:kept] + prompt[kept + over :]
    both = (prompt + answer)[:-1]  # nothing is asked after the end
    choices.tokens[where][: len(both)] = both
    choices.at[where][: len(answer)] = len(prompt) - 1 + np.arange(len(answer))
    choices.answers[where][: len(answer)] = answer


def every_token(choices: Choices) -> Choices:
    """The same texts with their right answers, asking for every token of them.

    For pre-training on the texts themselves.
    """
    rows = np.arange(len(choices.gold))
    gold = lambda x: x[rows, choices.gold]
    tokens, at, answers = map(gold, choices[:3])
    following = np.full_like(tokens, -1)
    following[:, :-1] = tokens[:, 1:]
    last = at.max(1)
    place = np.arange(tokens.shape[1])
    following[place >= last[:, None]] = -1
    real = answers >= 0
    following[np.nonzero(real)[0], at[real]] = answers[real]
    places = np.broadcast_to(place, tokens.shape).astype(np.int32)
    one = lambda x: x[:, None]
    return Choices(
        one(tokens), one(places), one(following), np.zeros_like(choices.gold)
    )


def packed(choices: Choices) -> Choices:
    """The same texts with their right answers, as many as fit one after another a row.

    For pre-training: a row is as long as before, and asks for what all its texts do.
    Texts fill the first row that has room for them, of those begun last.
    """
    rows = np.arange(len(choices.gold))
    tokens, at, answers = (x[rows, choices.gold] for x in choices[:3])
    used = np.where(answers >= 0, at, 0).max(1) + 1
    length = tokens.shape[1]
    places = _placed(used, length)
    filled, asked = 1 + max(row for row, *_ in places), (answers >= 0).sum(1)
    most = max(np.bincount([row for row, *_ in places], asked).astype(int))
    made = Choices(
        np.zeros((filled, 1, length), np.int32),
        np.zeros((filled, 1, most), np.int32),
        np.full((filled, 1, most), -1, np.int32),
        np.zeros(filled, np.int32),
        np.full((filled, 1, length), -1, np.int32),
    )
    put = np.zeros(filled, int)
    for example, (row, first, number) in enumerate(places):
        here, real = slice(first, first + used[example]), answers[example] >= 0
        there = slice(put[row], put[row] + asked[example])
        made.tokens[row, 0, here] = tokens[example, : used[example]]
        made.segment[row, 0, here] = number
        made.at[row, 0, there] = first + at[example, real]
        made.answers[row, 0, there] = answers[example, real]
        put[row] = there.stop
    return made


_OPEN = 16


def _placed(used: np.ndarray, length: int) -> list[tuple[int, int, int]]:
    """Every text's row, its first place there, and which of the row's texts it is."""
    rows: list[tuple[int, int]] = []  # places taken, and texts
    found = []
    for size in map(int, used):
        begun = range(max(0, len(rows) - _OPEN), len(rows))
        row = next((r for r in begun if rows[r][0] + size <= length), len(rows))
        rows[row:] = rows[row:] or [(0, 0)]
        taken, texts = rows[row]
        rows[row] = taken + size, texts + 1
        found.append((row, taken, texts))
    return found
