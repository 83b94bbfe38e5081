"""Your own text tasks: a Llama pre-trained on some, then one task a client.

    potara run text --data a.jsonl.gz b.jsonl

One file a task, of `text` and `label`; or `query`, `choices` and `gold`; or
`instruction`, `input` and `output`. A small Llama with byte-pair tokens is pre-trained
on a part of the first files, or `--checkpoint` names a Hugging Face folder. Clients
have one task each, in turn; no example is seen twice.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from potara_jax.adapters import lora
from potara_jax.data import text, tokens
from potara_jax.data.text import Example
from potara_jax.data.tokens import Tokenizer
from potara_jax.experiment.language import (
    Language,
    Model,
    encoded,
    loaded,
    pool_of,
    pretrained,
    problem_of,
)
from potara_jax.experiment.problem import Held, Problem, dealt, federations
from potara_jax.experiment.settings import check_apart, check_least, check_most
from potara_jax.models.llama import LlamaConfig

_TRAIN, _UPSTREAM = 0.6, 0.4
# Of the base. That it learns answers alone, and not its texts too, and at which rate,
# was chosen on a part of the base's own examples of five sentence tasks.
_BATCH, _RATE = 32, 2e-3
_FEWEST = 20  # examples of a task
_TOKENS = 10**6  # of a tokenizer
# Share of examples that are not cut, tokens of any, tokens before the longest answer.
_WHOLE, _LONGEST, _ASKED = 0.95, 128, 8


@dataclasses.dataclass(frozen=True)
class OwnText(Language):
    """Federated and local LoRA on a Llama for your own text tasks, merged by Potara."""

    data: tuple[Path, ...] = ()
    """Files of examples (.jsonl, .jsonl.gz, .json), one a task."""
    out: Path = Path("runs/text")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    checkpoint: str | None = None
    """Folder, or name on the hub, of a Llama or Qwen. Default: one is pre-trained."""
    seen: int | None = None
    """Files, from the first, that the base is pre-trained on. Default: 7 of 10."""
    context: int | None = None
    """The most tokens of an example; a longer one loses the front of its prompt.
    Default: what 19 of 20 examples need, and every answer, 128 at most."""
    train_examples: int = 1000
    """Training examples of a task, at most."""
    test_examples: int = 200
    """Test examples of a client, at most."""
    vocabulary: int = 2048
    """Tokens of the tokenizer that is trained."""
    width: int = 128
    """Width of the Llama that is pre-trained."""
    depth: int = 4
    """Its layers."""
    base_steps: int = 800
    """Steps of the base's pre-training."""

    def check(self) -> None:
        """As `Language.check`, and those of the texts."""
        super().check()
        if not self.data:
            raise ValueError("--data names nothing: name files of examples, one a task")
        if self.seen is not None and not 1 <= self.seen <= len(self.data):
            most = len(self.data)
            raise ValueError(f"--seen is {self.seen}: it must be from 1 to {most}")
        check_apart(self)
        check_most(self, _TOKENS, "vocabulary")
        check_least(self, 1, "depth")
        check_least(self, 8, "context", "test_examples", "width")
        check_least(self, 12, "train_examples")
        if self.vocabulary < 300:
            raise ValueError(f"--vocabulary is {self.vocabulary}: it must be >= 300")
        if self.width % 32:
            raise ValueError(f"--width is {self.width}: it must be a multiple of 32")


def problem(settings: OwnText, note) -> Problem:
    """A Llama and its federations, one a heterogeneity and seed."""
    found = [text.read(path) for path in settings.data]
    upstream, own = _split(_once(found, settings, note), settings)
    _name_idle(settings, note)
    most = settings.test_examples
    deal = lambda pool, strata: partial(dealt, settings, pool, strata, most=most)
    names = tuple(path.name.split(".")[0] for path in settings.data)
    problem = problem_of_texts(settings, upstream, own, deal, note)
    return problem._replace(held=Held("task", names))


def _name_idle(settings, note) -> None:
    """A line on files that no client has."""
    idle = settings.data[settings.clients :]
    if "tasks" in settings.heterogeneity and idle:
        names = ", ".join(path.name for path in idle)
        note(f"no client has {names}, with one task each; set --clients")


def problem_of_texts(
    settings, upstream: list[Example], own: list[list[Example]], deal, note
) -> Problem:
    """A Llama that is pre-trained on some examples, or loaded, and its federations.

    own: the clients' examples, a list a stratum. deal: from `(pool, strata)` to a
      function `(cell, size) -> federation`.
    """
    examples = [example for part in own for example in part]
    every = [*upstream, *examples]
    if settings.checkpoint:
        model = loaded(settings.checkpoint)
        context = min(_context(settings, model.tokenizer, every), model.config.context)
    else:
        tokenizer = _tokenizer(settings, upstream)
        context = _context(settings, tokenizer, every)
        model = _trained(settings, upstream, tokenizer, context, note)
    pool = pool_of(encoded(examples, model.tokenizer, context, note))
    strata = np.repeat(np.arange(len(own)), [len(part) for part in own])
    held = federations(settings, deal(pool, strata))
    return problem_of(settings, model, held)


def _tokenizer(settings, upstream: list[Example]) -> Tokenizer:
    texts = (f"{x.prompt} {x.options[x.gold]}" for x in upstream)
    return tokens.trained(texts, settings.vocabulary)


def _context(settings, tokenizer: Tokenizer, examples: list[Example]) -> int:
    """The most tokens of an example, by the settings or by what most of them need."""
    if settings.context:
        return settings.context
    needed, answers = np.transpose(tokens.lengths(examples, tokenizer))
    most = np.quantile(needed, _WHOLE, method="inverted_cdf")
    most = max(int(most), int(answers.max()) + _ASKED)
    return min(_LONGEST, -(-most // 8) * 8)


def _trained(settings, upstream, tokenizer: Tokenizer, context: int, note) -> Model:
    """A Llama that is pre-trained when it is read."""
    config = _sized(settings, tokenizer, context)
    read = partial(_base, settings, config, upstream, tokenizer, note)
    return Model(tokenizer, config, read)


def _once(found: list[list[Example]], settings, note) -> list[list[Example]]:
    """Every text in one file only, drawn from those that have it.

    So no text of a test is one that the base or another client was trained on.
    """
    rng = np.random.default_rng([settings.base_seed, 3])
    texts = [_texts(examples) for examples in found]
    files: dict[tuple, list[int]] = {}
    for number, own in enumerate(texts):
        for words in own:
            files.setdefault(words, []).append(number)
    keeper = {t: own[0] for t, own in files.items()}
    keeper |= {t: int(rng.choice(own)) for t, own in files.items() if len(own) > 1}
    kept = [
        list({t: e for t, e in zip(own, es, strict=True) if keeper[t] == n}.values())
        for n, (own, es) in enumerate(zip(texts, found, strict=True))
    ]
    again = sum(map(len, found)) - sum(map(len, kept))
    if again:
        note(
            f"{again} examples have a text that is there twice: each text is kept once"
        )
    return kept


def _texts(examples: list[Example]) -> list[tuple]:
    """Every example's prompt, and its options, where a file's differ."""
    several = {e.options for e in examples if len(e.options) > 1}
    return [(e.prompt, *(e.options if len(several) > 1 else ())) for e in examples]


def _split(found: list[list[Example]], settings):
    """The base's examples, and every task's of the clients."""
    rng = np.random.default_rng([settings.base_seed, 0])
    seen = _seen(settings)
    upstream, own = [], []
    most = round(settings.train_examples / _TRAIN)
    for number, examples in enumerate(found):
        order = rng.permutation(len(examples))
        first = round(_UPSTREAM * len(examples)) if number < seen else 0
        upstream += [examples[i] for i in order[:first]]
        own.append([examples[i] for i in order[first:][:most]])
        if len(own[-1]) < _FEWEST:
            raise ValueError(
                f"{settings.data[number]} has {len(examples)} examples, of which the "
                f"clients would have {len(own[-1])}: they must have {_FEWEST}"
            )
    return upstream, own


def _seen(settings) -> int:
    if settings.checkpoint:
        return 0
    told = settings.seen
    return max(1, round(0.7 * len(settings.data))) if told is None else told


def _sized(settings, tokenizer: Tokenizer, context: int) -> LlamaConfig:
    """The model that is pre-trained."""
    heads = settings.width // 32
    return LlamaConfig(
        vocabulary=tokenizer.size,
        width=settings.width,
        hidden=settings.width * 5 // 2,
        depth=settings.depth,
        heads=heads,
        key_heads=heads,
        theta=10000.0,
        context=context,
    )


def _base(settings, config: LlamaConfig, upstream, tokenizer, note) -> lora.Params:
    choices = encoded(upstream, tokenizer, config.context, note, whose="the base's")
    rows = tokens.packed(choices)
    return pretrained(settings, config, rows, note, batch_size=_BATCH, rate=_RATE)
