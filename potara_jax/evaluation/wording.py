"""Agreement of a written answer with the reference: exact match, F1 and ROUGE-1.

Exact match and F1 are as in SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250): words in
lower case, without punctuation and articles. ROUGE-1 (Lin 2004) counts all words in
lower case. Each score is in [0, 1].
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")


def exact_match(answer: str, reference: str) -> float:
    """1 if both have the same words in the same order, else 0."""
    return float(_squad_words(answer) == _squad_words(reference))


def f1(answer: str, reference: str) -> float:
    """The harmonic mean of the precision and the recall of the answer's words."""
    return _overlap(_squad_words(answer), _squad_words(reference))


def rouge_1(answer: str, reference: str) -> float:
    """F1 over all words, articles included."""
    return _overlap(_all_words(answer), _all_words(reference))


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_1": rouge_1,
}


def _squad_words(text: str) -> list[str]:
    """Words as SQuAD compares them; punctuation if nothing else is left."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _ARTICLES.sub(" ", bare).split() or text.split()


def _all_words(text: str) -> list[str]:
    return _WORD.findall(text.lower()) or text.split()


def _overlap(answer: Sequence[str], reference: Sequence[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))
