"""What experiments on texts share: their settings, and a problem of a Llama."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from potara_jax.adapters import lora, precision
from potara_jax.clients.task import answering, reading
from potara_jax.data import tokens
from potara_jax.data.federation import Batch, Federation
from potara_jax.data.text import Example
from potara_jax.data.tokens import Choices, Packed, Tokenizer
from potara_jax.experiment.problem import Problem, Writer, initial_adapter
from potara_jax.experiment.settings import Settings, check_base
from potara_jax.models import llama, publishing, weights
from potara_jax.models.decoding import greedy
from potara_jax.models.llama import Llama, LlamaConfig, Text
from potara_jax.models.pretraining import pretrain
from potara_jax.models.publishing import Form
from potara_jax.runs.bases import cached_base


@dataclasses.dataclass(frozen=True)
class Language(Settings):
    """Federated and local LoRA on a language model, merged by Potara."""

    heterogeneity: tuple[str, ...] = ("tasks",)
    """`tasks`: one task a client; `shards2`: two tasks a client; or Dirichlet
    concentrations of the clients' tasks."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Modules to adapt: regular expressions for the end of a module's path."""
    curvature: Literal["exact", "empirical", "sampled"] = "sampled"
    """Which Fisher: of the data's answers, or of answers drawn from the model."""
    train_head: tyro.conf.Suppress[bool] = False
    normalise: bool = False
    """Choose options by their log-likelihood a token, not whole."""
    base_seed: int = 0
    """Seed of the base's examples, and of its pre-training."""
    base_steps: int = 500
    """Steps of the base's pre-training."""

    def check(self) -> None:
        """As `Settings.check`, and those of texts."""
        super().check()
        check_base(self)


class Model(NamedTuple):
    """A Llama with its tokenizer; `read()` gives its parameters.

    `checkpoint`: the folder or name that it is of, or None where it is trained here.
    """

    tokenizer: Tokenizer
    config: LlamaConfig
    read: Callable[[], lora.Params]
    checkpoint: str | None = None


def problem_of(
    settings: Language,
    found: Model,
    federations: dict[tuple[str, int], Federation],
) -> Problem:
    """A problem of a Llama, whose parameters are read once all is checked.

    Raises `ValueError` for settings that a Llama does not know.
    """
    if settings.curvature == "exact":
        raise ValueError("--curvature is exact: answers of many tokens need sampled")
    if settings.train_head:
        raise ValueError("--train-head is set: a Llama has no head of its own to train")
    reduced = settings.precision != "float32"
    dtype = "bfloat16" if reduced else "float32"
    config = dataclasses.replace(found.config, dtype=dtype, remat=settings.remat)
    model, text = Llama(config), example_text()
    sites = lora.find_sites(model, text, targets=settings.targets)
    lora.check_rank(sites, settings.rank)
    every = lora.find_sites(model, text, targets=".*_proj")
    scale = settings.alpha / settings.rank
    task = answering(lora.bind(model, scale=scale), normalise=settings.normalise)
    base = found.read()
    return Problem(
        task=task._replace(add=lora.bind_add(sites, scale=scale)),
        base=precision.KINDS[settings.precision](base, every),
        adapter=initial_adapter(sites, rank=settings.rank, base=base, trained=()),
        federations=federations,
        form=_form(found, sites, scale),
        writer=_writer(found.tokenizer, model, scale),
    )


def _writer(tokenizer: Tokenizer, model: Llama, scale: float) -> Writer:
    apply = lora.bind(model, scale=scale)

    def write(base, adapter, prompts, counts, most: int):
        read = lambda *args: apply(base, adapter, *args, method="read")
        cache = llama.empty_cache(model.config, len(prompts), prompts.shape[1] + most)
        return greedy(read, cache, prompts, counts, most=most, stop=tokenizer.end)

    return Writer(write, tokenizer.decode, tokenizer.end)


def _form(found: Model, sites, scale: float) -> Form:
    how = {"sites": sites, "scale": scale, "task": "CAUSAL_LM"}
    if found.checkpoint:
        folder = weights.folder_of(found.checkpoint)
        config, texts = weights.read_config(folder), publishing.read_files(folder)
        return Form(llama.TABLE, config, texts, **how, checkpoint=found.checkpoint)
    pad, begin, end = tokens.SPECIAL
    config = llama.described(found.config)
    config |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    told = {"pad_token": pad, "bos_token": begin, "eos_token": end}
    told |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    texts = {"tokenizer_config.json": json.dumps(told, indent=1) + "\n"}
    texts |= {"tokenizer.json": found.tokenizer.file}
    return Form(llama.TABLE, config, texts, **how)


def loaded(name: str) -> Model:
    """A checkpoint of Hugging Face."""
    folder = weights.folder_of(name)
    found = weights.read_config(folder)
    with weights.understanding(folder / weights.CONFIG):
        config, tokenizer = llama.config_of(found), tokens.from_folder(folder, found)

    def read() -> lora.Params:
        init = partial(Llama(config).init, jax.random.key(0))
        shapes = jax.eval_shape(init, example_text())["params"]
        return weights.load(folder, llama.TABLE, shapes)

    return Model(tokenizer, config, read, name)


def encoded(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    context: int,
    note: Callable[[str], None],
    *,
    whose: str = "the clients'",
) -> Choices:
    """All examples as arrays, with a line on those that are cut."""
    choices, cut = tokens.encode(examples, tokenizer, context=context)
    if cut:
        number = f"{cut} of {whose} {len(examples)} examples"
        told = f"{number} have more than {context} tokens"
        note(f"{told}: their prompts lost their front (--context)")
    return choices


def example_text() -> Text:
    """The shapes of a text, for a model's own shapes."""
    whole = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return Text(whole, jax.ShapeDtypeStruct((1, 2), jnp.int32))


def pool_of(choices: Choices) -> Batch:
    """All examples, with the tokens of the right answers as labels."""
    rows = np.arange(len(choices.gold))
    labels = choices.answers[rows, choices.gold]
    return jax.tree.map(jnp.asarray, Batch(choices, labels))


def pretrained(
    settings: Language,
    config: LlamaConfig,
    upstream: Packed,
    note: Callable[[str], None],
    *,
    batch_size: int,
    rate: float,
) -> lora.Params:
    """A base that answers the upstream examples, from the cache where it is there."""
    steps, seed = settings.base_steps, settings.base_seed
    recipe = {"model": dataclasses.asdict(config), "steps": steps, "seed": seed}
    recipe |= {"batch_size": batch_size, "rate": rate}
    model = Llama(config)
    loss = reading(lora.bind(model, scale=1.0))

    def train() -> lora.Params:
        start, key = jax.random.split(jax.random.key(seed))
        text = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_text())
        return pretrain(
            lambda params, rows: loss(params, {}, rows).mean(),
            model.init(start, text)["params"],
            jax.tree.map(jnp.asarray, upstream),
            key,
            steps=steps,
            batch_size=batch_size,
            learning_rate=rate,
            told=lambda n, loss: note(f"base: step {n} of {steps}, loss {loss:.3f}"),
        )[0]

    return cached_base(settings.cache, recipe, upstream, train, note)
