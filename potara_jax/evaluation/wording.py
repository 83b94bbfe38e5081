"""How near a written answer is to the right one: exact match, F1 and ROUGE-1.

As SQuAD scores them (Rajpurkar et al. 2016, arXiv 1606.05250): words in lower case,
without punctuation and articles. ROUGE-1 (Lin 2004) counts all words as they are
written, in lower case. Each is in [0, 1].
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")


def exact_match(written: str, right: str) -> float:
    """1 where both have the same words in the same order, else 0."""
    return float(_plain(written) == _plain(right))


def f1(written: str, right: str) -> float:
    """The harmonic mean of precision and recall of the words."""
    return _overlap(_plain(written), _plain(right))


def rouge_1(written: str, right: str) -> float:
    """The same of all words, articles too."""
    words = lambda text: _WORD.findall(text.lower()) or text.split()
    return _overlap(words(written), words(right))


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_1": rouge_1,
}


def _plain(text: str) -> list[str]:
    """Words as SQuAD compares them; where there are only signs, the signs."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _ARTICLES.sub(" ", bare).split() or text.split()


def _overlap(written: list[str], right: list[str]) -> float:
    if not written or not right:
        return float(written == right)
    common = sum((Counter(written) & Counter(right)).values())
    return 2 * common / (len(written) + len(right))
