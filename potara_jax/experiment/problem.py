"""What an experiment is about: a model with its base, and its federations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Adapter, Params
from potara_jax.clients.task import Task
from potara_jax.data.dealing import TASKS
from potara_jax.data.federation import Federation
from potara_jax.models.publishing import Form

Federations = dict[tuple[str, int], Federation]


def silent(line: str) -> None:
    """Discard a line for the user."""


class Resources(NamedTuple):
    """What making a problem may use; it never changes the problem.

    Attributes:
      cache: folder where pre-trained bases are kept; None keeps nothing on disk.
      log: `log(line)` shows the user a line.
    """

    cache: Path | None = None
    log: Callable[[str], None] = silent


class Writer(NamedTuple):
    """How a model writes answers to prompts.

    Attributes:
      write: `write(base, adapter, prompts [B, L], counts [B], length) -> [B, length]`,
        tokens by greedy decoding, then `stop`.
      text: `text(tokens)`, the tokens as text.
      stop: the token after an answer.
    """

    write: Callable[[Params, Adapter, jax.Array, jax.Array, int], jax.Array]
    text: Callable[[Iterable[int]], str]
    stop: int


class Split(NamedTuple):
    """A model in two: the first layers, which nothing changes, and the others.

    Attributes:
      layers: the number of the first ones.
      depth: the number of all.
      below: `below(base, inputs)`, what the first layers make of a batch's inputs
        `[B, ...]`, a pytree.
      task: what clients learn on the others, which read that in place of the inputs.
    """

    layers: int
    depth: int
    below: Callable[[Params, Any], Any]
    task: Task


class ClientContents(NamedTuple):
    """Readable names of what clients hold.

    Attributes:
      kind: what a stratum is: class, task or client.
      names: of the strata. If empty, they are numbered.
      clients: names of the clients. If empty, they are numbered.
      transformations: names of what clients do to their inputs, where with
        heterogeneity `tasks` they differ by it: a client's is that of its `task`.
    """

    kind: str = "class"
    names: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    transformations: tuple[str, ...] = ()


class MakeAdapter(Protocol):
    """Draws a fresh adapter; by default of the experiment's rank."""

    def __call__(self, key: jax.Array, rank: int = ...) -> Adapter: ...


class Problem(NamedTuple):
    """A pre-trained model, which part of it is adapted, and by whom.

    Attributes:
      task: what clients learn.
      base: the frozen parameters.
      adapter: draws a fresh adapter.
      federations: by `(heterogeneity, seed)`, all padded to one length, so that one
        compiled program serves them all.
      form: how the model is exported, or None.
      writer: how it writes answers, or None.
      contents: names of what clients hold.
      split: the model in two, if its first layers are frozen, or None.
    """

    task: Task
    base: Params
    adapter: MakeAdapter
    federations: Federations
    form: Form | None = None
    writer: Writer | None = None
    contents: ClientContents = ClientContents()
    split: Split | None = None

    def held(self, heterogeneity: str, seed: int) -> ClientContents:
        """Names of what a cell's clients hold; a transformation's is its clients'."""
        names = self.contents.transformations
        if heterogeneity != TASKS or not names:
            return self.contents
        kinds = self.federations[heterogeneity, seed].task.tolist()
        return self.contents._replace(clients=tuple(names[kind] for kind in kinds))


def adapter_maker(
    sites: Mapping[str, lora.Site], *, rank: int, base: Params, whole: Sequence[str]
) -> MakeAdapter:
    """A function that draws adapters: fresh factors, and the base's whole modules.

    Args:
      sites: the modules that factors adapt.
      rank: of the factors, by default.
      base: the frozen parameters.
      whole: paths of modules that are trained whole.

    Returns:
      The function.

    Raises:
      ValueError: the base has no module at a path, or it is adapted as well.
    """
    lora.check_apart(sites, whole)
    modules = lora.trained_modules(base, whole)
    default = rank

    def make(key: jax.Array, rank: int = default) -> Adapter:
        return lora.init(key, sites, rank=rank) | modules

    return make
