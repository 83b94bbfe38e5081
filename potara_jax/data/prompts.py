"""Public text tasks as prompts, and the suites that they make up.

Every prompt ends with "Answer:" and lists its choices by letter, where the commonsense
suite of LLM-Adapters (arXiv 2304.01933) lists them by number.
"""

from __future__ import annotations

from collections.abc import Mapping

from potara_jax.data.catalogue import Record, Source
from potara_jax.data.text import Example

_LETTERS = "ABCDE"


def _choice(question: str, options: list[str], gold: int) -> Example:
    letters = _LETTERS[: len(options)]
    listed = "\n".join(f"{x}. {o}" for x, o in zip(letters, options, strict=True))
    return Example(f"{question}\n{listed}\nAnswer:", tuple(letters), gold)


def _yes_or_no(question: str, yes: bool) -> Example:
    return Example(f"{question}\nAnswer:", ("no", "yes"), int(yes))


def _bool_q(r: Record) -> Example:
    return _yes_or_no(f"{r['passage']}\n{r['question']}?", r["answer"])


def _piqa(r: Record) -> Example:
    return _choice(f"Goal: {r['goal']}", [r["sol1"], r["sol2"]], r["label"])


def _social_i_qa(r: Record) -> Example:
    options = [r["answerA"], r["answerB"], r["answerC"]]
    return _choice(f"{r['context']}\n{r['question']}", options, r["label"])


def _hellaswag(r: Record) -> Example:
    return _choice(f"{r['context']} ...", list(r["endings"]), r["label"])


def _winogrande(r: Record) -> Example:
    question = f"{r['sentence']}\nWhat does _ stand for?"
    return _choice(question, [r["option1"], r["option2"]], r["label"])


def _arc(r: Record) -> Example:
    options = list(r["choices"]["text"])
    place = list(r["choices"]["label"]).index(r["answerKey"])
    return _choice(f"Question: {r['question']}", options, place)


def _openbookqa(r: Record) -> Example:
    options = [r["question"][f"choice_{x}"] for x in "ABCD"]
    return _choice(f"Question: {r['question']['stem']}", options, r["answerKey"])


def _cosmos_qa(r: Record) -> Example:
    options = [r[f"answer{i}"] for i in range(4)]
    return _choice(f"{r['context']}\nQuestion: {r['question']}", options, r["label"])


def _pronouns(r: Record) -> Example:
    question = f'{r["sentence"]}\nWho or what is "{r["pronoun"]}"?'
    return _choice(question, list(r["candidates"]), r["label"])


def _qqp(r: Record) -> Example:
    both = f"First: {r['question1']}\nSecond: {r['question2']}"
    return _yes_or_no(f"{both}\nDo they ask the same?", r["label"])


def _mnli(r: Record) -> Example:
    prompt = f"Premise: {r['premise']}\nHypothesis: {r['hypothesis']}\n"
    options = ("entailment", "neutral", "contradiction")
    return Example(f"{prompt}Answer:", options, int(r["label"]))


def _squad(r: Record) -> Example:
    prompt = f"{r['context']}\nQuestion: {r['question']}\nAnswer:"
    return Example(prompt, (r["answers"]["text"][0],))


def _sst2(r: Record) -> Example:
    prompt = f"Review: {r['sentence']}\nAnswer:"
    return Example(prompt, ("negative", "positive"), int(r["label"]))


_ARC_CHALLENGE = Source("ai2_arc/ARC-Challenge", _arc, test="test")
_HELLASWAG = Source("hellaswag", _hellaswag)

COMMONSENSE: Mapping[str, Source] = {
    "boolq": Source("bool_q", _bool_q),
    "piqa": Source("piqa", _piqa),
    "social_i_qa": Source("social_i_qa", _social_i_qa),
    "hellaswag": _HELLASWAG,
    "winogrande": Source("winogrande", _winogrande, train="train_xl"),
    "arc_easy": Source("ai2_arc/ARC-Easy", _arc, test="test"),
    "arc_challenge": _ARC_CHALLENGE,
    "openbookqa": Source("openbookqa", _openbookqa, test="test"),
}
FLAN: Mapping[str, Source] = {
    "arc_challenge": _ARC_CHALLENGE,
    "cosmos_qa": Source("cosmos_qa", _cosmos_qa),
    "definite_pronoun_resolution": Source(
        "definite_pronoun_resolution", _pronouns, test="test"
    ),
    "glue_qqp": Source("glue/qqp", _qqp),
    "hellaswag": _HELLASWAG,
    "mnli": Source("glue/mnli", _mnli, test="validation_matched"),
    "squad_v1": Source("squad/v1.1", _squad),
    "sst2": Source("glue/sst2", _sst2),
}
