"""Sentences, and pairs of them, as arrays of tokens with their special ones.

Dimension letters: `P` sentences or pairs, `L` tokens.

The tokenizer is a Hugging Face folder's: WordPiece, byte-level BPE or Unigram, from its
`tokenizer.json`; or WordPiece, from an older folder's `vocab.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potara_jax.data import tokens

VOCABULARY = "vocab.txt"
_SHORTEST = 8  # tokens of a bucket
_BATCH = 10_000  # sentences that are encoded at once

Sentence = str | tuple[str, str]


class Encoded(NamedTuple):
    """Sentences as tokens, all int32; see the module for the letters.

    Attributes:
      tokens: `[P, L]`, padded at the end.
      count: `[P]`, the tokens that are not padding.
      first: `[P]`, the tokens of a pair's first sentence, or all.
    """

    tokens: np.ndarray
    count: np.ndarray
    first: np.ndarray


# --- Tokenizers ----------------------------------------------------------------------


def from_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    options: Mapping[str, Any] = {},
) -> Any:
    """The tokenizer of a Hugging Face folder, a `tokenizers.Tokenizer`.

    Args:
      folder: holds `tokenizer.json` or `vocab.txt`.
      config: the model's `config.json`, with the size of its vocabulary.
      options: the content of `tokenizer_config.json`, read with a `vocab.txt`.

    Raises:
      ValueError: both files are missing, or the tokenizer does not fit the model.
    """
    path, vocabulary = Path(folder) / tokens.FILE, Path(folder) / VOCABULARY
    if not path.is_file() and vocabulary.is_file():
        path = vocabulary
        tokenizer = of_vocabulary(path, options)
    else:
        tokenizer = tokens.from_file(path)
    tokens.check_size(path, tokenizer, config["vocab_size"])
    if not tokenizer.num_special_tokens_to_add(is_pair=False):
        raise ValueError(f"{path} adds no special tokens: it is not of an encoder")
    return tokenizer


def of_vocabulary(path: Path, options: Mapping[str, Any]) -> Any:
    """BERT's WordPiece tokenizer of a file with one token per line.

    Args:
      path: of the file.
      options: the content of a `tokenizer_config.json`.

    Raises:
      ValueError: the file lacks a special token.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = {token: number for number, token in enumerate(lines)}
    special = {name: options.get(name, text) for name, text in _SPECIAL.items()}
    missing = [token for token in special.values() if token not in numbers]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not BERT's")
    unknown, begin, end = (special[f"{x}_token"] for x in ("unk", "cls", "sep"))
    model = models.WordPiece(numbers, unk_token=unknown, max_input_chars_per_word=100)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        (end, numbers[end]), (begin, numbers[begin])
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(special.values()))
    return tokenizer


_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}


# --- Sentences -----------------------------------------------------------------------


def encode(
    sentences: Sequence[Sentence], tokenizer: Any, *, context: int, pad: int = 0
) -> tuple[Encoded, int]:
    """Encode sentences as arrays.

    A pair that is too long loses tokens of its longer sentence first.

    Args:
      sentences: each a text, or a pair of texts.
      tokenizer: see `from_folder`.
      context: the largest length `L`, special tokens included.
      pad: the padding token.

    Returns:
      The arrays, whose length is that of a bucket, and the number of sentences that
      lost their ends.

    Raises:
      ValueError: the context leaves no room beside the special tokens.
    """
    cut = _cut(tokenizer, context)
    rows = [_row(x) for x in _in_batches(cut, sentences)]
    longest = max((len(row.tokens) for row in rows), default=0)
    length = min(context, bucket(longest))
    encoded = Encoded(
        np.full((len(rows), length), pad, np.int32),
        np.array([len(row.tokens) for row in rows], np.int32),
        np.array([row.first for row in rows], np.int32),
    )
    for place, row in zip(encoded.tokens, rows, strict=True):
        place[: len(row.tokens)] = row.tokens
    return encoded, sum(row.cut for row in rows)


class _Row(NamedTuple):
    """A sentence or a pair: its tokens, those of its first type, and if it was cut."""

    tokens: np.ndarray
    first: int
    cut: bool


def _row(encoding: Any) -> _Row:
    tokens = np.array(encoding.ids, np.int32)
    return _Row(tokens, encoding.type_ids.count(0), bool(encoding.overflowing))


def _in_batches(tokenizer: Any, sentences: Sequence[Sentence]) -> Iterator[Any]:
    """The encodings of sentences, one by one; each takes many times its tokens."""
    for start in range(0, len(sentences), _BATCH):
        yield from tokenizer.encode_batch(list(sentences[start : start + _BATCH]))


def _cut(tokenizer: Any, context: int) -> Any:
    """A tokenizer like another, which cuts sentences to a context."""
    import tokenizers

    special = tokenizer.num_special_tokens_to_add(is_pair=True)
    if context <= special:
        raise ValueError(
            f"a context of {context} leaves no room beside {special} special tokens"
        )
    other = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    other.enable_truncation(context)
    return other


def stripped(sentence: Sentence) -> Sentence:
    """A sentence without spaces around it, or a pair of such."""
    if isinstance(sentence, str):
        return sentence.strip()
    first, second = sentence
    return first.strip(), second.strip()


def lengths(sentences: Sequence[Sentence], tokenizer: Any) -> np.ndarray:
    """The tokens of every sentence, special ones included, `[P]`."""
    return np.array([len(x.ids) for x in _in_batches(tokenizer, sentences)])


def bucket(length: int) -> int:
    """The length that sentences are padded to: 8, 12, 16, 24, 32, 48, 64, 96, ...

    Few lengths mean few compiled programs, of which none computes a third in vain.
    """
    size = _SHORTEST
    while size < length:
        size *= 2
    shorter = size * 3 // 4
    return shorter if size > _SHORTEST and length <= shorter else size
