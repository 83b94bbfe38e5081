"""Examples of text as arrays of tokens, and the tokenizers.

Dimension letters: `P` examples, `O` options, `L` tokens of a sequence, `A` tokens of
the longest answer, its end token included, `R` rows of packed texts.

A sequence is `begin, prompt, answer, end`. If it exceeds the context with its longest
option, the prompt loses its beginning, because the question is at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potara_jax.data.text import Example

FILE = "tokenizer.json"
SPECIAL = "<pad>", "<begin>", "<end>"
_ROUND_UP = 8
_OPEN = 16  # rows that `pack_texts` still looks at

Tokenised = tuple[list[int], list[list[int]]]  # a prompt, and its options


class Tokenizer(NamedTuple):
    """Texts to tokens and back, without special tokens.

    Attributes:
      encode: `encode(text) -> tokens`.
      decode: `decode(tokens) -> text`.
      size: of the vocabulary.
      pad: the special token that fills rows.
      begin: the special token that starts a text, or None.
      end: the special token that ends a text.
      file: the content of its `tokenizer.json`.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Iterable[int]], str]
    size: int
    pad: int
    begin: int | None
    end: int
    file: str


# --- Tokenizers ----------------------------------------------------------------------


def of_bytes() -> Tokenizer:
    """A tokenizer with one token per byte of UTF-8, after the special ones."""
    import tokenizers

    letters = [letter for letter, _ in sorted(_letters().items(), key=lambda x: x[1])]
    vocabulary = {token: n for n, token in enumerate((*SPECIAL, *letters))}
    tokenizer = _with_bytes(tokenizers.models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(list(SPECIAL))
    return _wrapped(tokenizer, pad=0, begin=1, end=2)


def trained(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn byte-pair encoding with `size` tokens from texts."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _with_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, pad=0, begin=1, end=2)


def _with_bytes(model: Any) -> Any:
    """A tokenizer that reads a text as bytes, each written as a letter."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _letters() -> dict[str, int]:
    """The byte that each letter of a byte-level tokenizer stands for (as in GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(other)}


def from_folder(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, from its `tokenizer.json`.

    Args:
      folder: holds the file.
      config: the model's `config.json`, which names the special tokens.

    Returns:
      The tokenizer, with the size of the model's vocabulary.

    Raises:
      ValueError: the file is missing, or does not fit the model.
    """
    path, size = Path(folder) / FILE, config["vocab_size"]
    tokenizer = from_file(path)
    check_size(path, tokenizer, size)
    end, begin = _first(config["eos_token_id"]), config.get("bos_token_id")
    pad = config.get("pad_token_id")
    for token in (end, *(x for x in (begin, pad) if x is not None)):
        if not isinstance(token, int) or not 0 <= token < size:
            problem = f"a special token {token!r}, but {size} tokens"
            raise ValueError(f"{folder}/config.json has {problem}: correct it")
        if token != pad and tokenizer.id_to_token(token) is None:
            problem = f"the special token {token} of config.json"
            raise ValueError(f"{path} lacks {problem}: it belongs to another model")
    pad = end if pad is None else pad
    return _wrapped(tokenizer, pad=pad, begin=begin, end=end)._replace(size=size)


def from_file(path: Path) -> Any:
    """The library's tokenizer in a `tokenizer.json`, which neither cuts nor pads.

    Raises:
      ValueError: the file is missing or damaged.
    """
    import tokenizers

    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {FILE}; download it again")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this alone
        raise ValueError(f"{path} is no tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_size(path: Path, tokenizer: Any, size: int) -> None:
    """Raise `ValueError` if a file's tokenizer has a token that the model lacks."""
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if last >= size:
        raise ValueError(
            f"{path} has a token {last}, but the model only {size} tokens: it belongs "
            "to another model"
        )


def _first(token: Any) -> Any:
    return token[0] if isinstance(token, list) else token


def _wrapped(tokenizer: Any, *, pad: int, begin: int | None, end: int) -> Tokenizer:
    return Tokenizer(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True),
        tokenizer.get_vocab_size(with_added_tokens=True),
        pad=pad,
        begin=begin,
        end=end,
        file=tokenizer.to_str(),
    )


# --- Prompts and their options -------------------------------------------------------


class Choices(NamedTuple):
    """Prompts, and what may follow each of them. All int32.

    Attributes:
      prompt: `[P, L]`, padded at the end, with room for any one of its options.
      count: `[P]`, the prompt's tokens.
      answers: `[P, O, A]`, the options' tokens, then -1; an option that an example does
        not have is -1 throughout.
      gold: `[P]`, the right option.
      hidden: `[P, L + O (A - 1), D]`, of any dtype, what the frozen layers of a model
        compute of a prompt and all its options side by side, if it is kept.
    """

    prompt: np.ndarray
    count: np.ndarray
    answers: np.ndarray
    gold: np.ndarray
    hidden: Any = None


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, *, context: int
) -> tuple[Choices, int]:
    """Encode examples as arrays.

    Args:
      examples: prompts and options.
      tokenizer: encodes them.
      context: the largest length `L`.

    Returns:
      The arrays, and the number of examples whose prompts lost their beginning.

    Raises:
      ValueError: an answer alone exceeds the context, or a prompt is empty and the
        tokenizer has no token to begin with.
    """
    pairs = _tokenise(examples, tokenizer)
    if not all(prompt for prompt, _ in pairs):
        raise ValueError("a prompt is empty, and the tokenizer has no token to begin")
    longest = _check_answers(examples, pairs, context)
    needed = [_needed(*pair) for pair in pairs]
    length = min(context, -(-max(needed) // _ROUND_UP) * _ROUND_UP)
    options = max(len(example.options) for example in examples)
    choices = _empty(len(examples), length, (options, longest), tokenizer)
    for row, (prompt, answers) in enumerate(pairs):
        kept = _cut(prompt, max(0, needed[row] - length), tokenizer)
        choices.prompt[row, : len(kept)], choices.count[row] = kept, len(kept)
        for option, answer in enumerate(answers):
            choices.answers[row, option, : len(answer)] = answer
    choices.gold[:] = [example.gold for example in examples]
    return choices, sum(need > length for need in needed)


def lengths(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Tokens of each example with its longest option, and of that option alone."""
    pairs = _tokenise(examples, tokenizer)
    return [(_needed(*pair), max(map(len, pair[1]))) for pair in pairs]


def _tokenise(examples: Sequence[Example], tokenizer: Tokenizer) -> list[Tokenised]:
    """Every example's prompt, and its options with their end tokens."""
    known: dict[str, list[int]] = {}
    for option in {option for example in examples for option in example.options}:
        known[option] = [*tokenizer.encode(f" {option}"), tokenizer.end]
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    return [
        (begin + tokenizer.encode(x.prompt), [known[option] for option in x.options])
        for x in examples
    ]


def _check_answers(
    examples: Sequence[Example], pairs: Sequence[Tokenised], context: int
) -> int:
    """Tokens of the longest answer, which must fit the context."""
    longest, option = max(
        (len(answer), option)
        for (_, answers), example in zip(pairs, examples, strict=True)
        for answer, option in zip(answers, example.options, strict=True)
    )
    if longest >= context:
        raise ValueError(
            f"the answer '{option[:40]}' has {longest} tokens: the context of "
            f"{context} must be longer"
        )
    return longest


def _needed(prompt: list[int], options: list[list[int]]) -> int:
    longest = max(map(len, options))
    return len(prompt) + longest - 1  # the model never reads the end token


def _empty(
    rows: int, length: int, answers: tuple[int, int], tokenizer: Tokenizer
) -> Choices:
    return Choices(
        np.full((rows, length), tokenizer.pad, np.int32),
        np.zeros(rows, np.int32),
        np.full((rows, *answers), -1, np.int32),
        np.zeros(rows, np.int32),
    )


def _cut(prompt: list[int], excess: int, tokenizer: Tokenizer) -> list[int]:
    """The prompt without its first `excess` tokens; its begin token stays."""
    kept = 0 if tokenizer.begin is None else 1
    return prompt[:kept] + prompt[kept + excess :]


# --- Rows of several texts -----------------------------------------------------------


class Packed(NamedTuple):
    """Rows of texts, one after another, for pre-training. All int32.

    Attributes:
      tokens: `[R, L]`.
      segment: `[R, L]`, which text of the row a token is of, from 1; -1 for padding.
      at: `[R, A]`, the positions before the tokens to predict.
      answers: `[R, A]`, those tokens, then -1.
    """

    tokens: np.ndarray
    segment: np.ndarray
    at: np.ndarray
    answers: np.ndarray


def pack_texts(choices: Choices) -> Packed:
    """Pack prompts with their right answers into rows.

    A row is as long as the longest prompt with an answer, and the model predicts all
    answers in it. A text goes into the first row with room among the last ones begun.
    """
    right = choices.answers[np.arange(len(choices.gold)), choices.gold]
    texts = [
        (prompt[:count], answer[answer >= 0])
        for prompt, count, answer in zip(*choices[:2], right, strict=True)
    ]
    length = choices.prompt.shape[1]
    places = _place([len(p) + len(a) - 1 for p, a in texts], length)
    row_of = [row for row, *_ in places]
    answered = int(np.bincount(row_of, [len(answer) for _, answer in texts]).max())
    packed = _empty_rows(1 + max(row_of), length, answered)
    filled = np.zeros(1 + max(row_of), int)
    for (prompt, answer), (row, start, number) in zip(texts, places, strict=True):
        begin = start + len(prompt)
        text = slice(start, begin + len(answer) - 1)
        packed.tokens[row, text] = np.concatenate([prompt, answer[:-1]])
        packed.segment[row, text] = number + 1
        targets = slice(filled[row], filled[row] + len(answer))
        packed.at[row, targets] = np.arange(begin - 1, text.stop)
        packed.answers[row, targets] = answer
        filled[row] = targets.stop
    return packed


def _empty_rows(rows: int, length: int, answered: int) -> Packed:
    return Packed(
        np.zeros((rows, length), np.int32),
        np.full((rows, length), -1, np.int32),
        np.zeros((rows, answered), np.int32),
        np.full((rows, answered), -1, np.int32),
    )


def _place(sizes: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """Every text's row, its first position in it, and its number within it."""
    rows: list[tuple[int, int]] = []  # tokens and texts
    places = []
    for size in sizes:
        open_rows = range(max(0, len(rows) - _OPEN), len(rows))
        row = next((r for r in open_rows if rows[r][0] + size <= length), len(rows))
        rows[row:] = rows[row:] or [(0, 0)]
        used, texts = rows[row]
        rows[row] = used + size, texts + 1
        places.append((row, used, texts))
    return places
