"""Your own clients: a folder with one sub-folder or file a client.

    potara run clients --data FOLDER

A client is an .npz file of images, a folder of images with one sub-folder a class, or a
file of examples of text (.jsonl, .jsonl.gz, .json). A model is pre-trained on the
examples of some clients, who then take no part, or `--checkpoint` names one.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from potara_jax.experiments.images import LARGEST, OwnImages, model_of
from potara_jax.experiments.text import OwnText, problem_of_texts

from potara_jax.data import dealing, images, text
from potara_jax.data.federation import Batch
from potara_jax.data.images import Images
from potara_jax.experiment.problem import Held, Problem, federations
from potara_jax.experiment.settings import check_least, check_most
from potara_jax.experiment.vision import problem_of

_SHARES = {"train": 0.6, "heldout": 0.2, "test": 0.2}
_TEXT = (".jsonl", ".jsonl.gz", ".json")
_FEWEST = 10


@dataclasses.dataclass(frozen=True)
class OwnClients(OwnText):
    """Federated and local LoRA on your own clients, merged by Potara."""

    data: tuple[Path, ...] = ()
    """The folder that holds a sub-folder or file a client."""
    out: Path = Path("runs/clients")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    clients: int = 0
    """How many clients federate. Default: all that the base is not pre-trained on."""
    heterogeneity: tuple[str, ...] = ("own",)
    """Clients are as they are: `own`."""
    more_heterogeneity: ClassVar[tuple[str, ...]] = ("own",)
    targets: tuple[str, ...] = ()
    """Modules to adapt. Default: queries and values."""
    seen: tyro.conf.Suppress[int | None] = None
    upstream: float = 0.3
    """Share of the clients that the base is pre-trained on; they do not federate."""
    side: int | None = None
    """Resize images to so many pixels. Default: as they are."""
    base_batch: int = 64
    """Images of a step of the pre-training."""
    train_head: bool | None = None
    """Train the head for images too; it then travels and merges with the adapter.
    Default: True for images. The head for texts is not trained."""
    curvature: Literal["exact", "empirical", "sampled"] | None = None
    """Which Fisher: over all classes of images, of the data's labels, or of labels
    drawn. Default: of the data's labels for images, of drawn ones for texts."""

    def check(self) -> None:
        """As `OwnText.check`, and those of images."""
        super().check()
        check_least(self, 1, "side", "base_batch")
        check_most(self, LARGEST, "side")
        if self.heterogeneity != ("own",):
            told = " ".join(self.heterogeneity)
            raise ValueError(f"--heterogeneity is {told}: clients are as they are, own")
        if not 0 <= self.upstream < 1:
            raise ValueError(f"--upstream is {self.upstream}: it must be in [0, 1)")
        if not self.upstream and not self.checkpoint:
            raise ValueError("--upstream is 0: a base needs clients, or --checkpoint")


def resolve(settings: OwnClients) -> OwnClients:
    """The settings with the number of clients, and what goes with their kind."""
    found = _entries(settings)
    own = len(found) - _upstream(settings, len(found))
    if settings.clients > own:
        raise ValueError(f"--clients is {settings.clients}: there are {own}")
    kind = OwnText if _is_text(found[0]) else OwnImages
    default = {f.name: f.default for f in dataclasses.fields(kind)}
    names = "targets", "train_head", "curvature"
    unset = [name for name in names if getattr(settings, name) in (None, ())]
    own = {"clients": settings.clients or own, **{n: default[n] for n in unset}}
    return dataclasses.replace(settings, **own)


def problem(settings: OwnClients, note) -> Problem:
    """A model and the federation of the clients, one a seed."""
    found = _entries(settings)
    order = np.random.default_rng([settings.base_seed, 0]).permutation(len(found))
    first = _upstream(settings, len(found))
    upstream = [found[i] for i in order[:first]]
    own = [found[i] for i in np.sort(order[first:])[: settings.clients]]
    if upstream:
        names = ", ".join(path.name for path in upstream)
        note(f"the base is pre-trained on {names}; all others are clients")
    kind = _texts if _is_text(found[0]) else _images
    problem, names = kind(settings, upstream, own, note), tuple(p.name for p in own)
    if kind is _texts:
        return problem._replace(held=Held("client", names, names))
    return problem._replace(held=problem.held._replace(clients=names))


def _entries(settings) -> list[Path]:
    """All clients, in the order of their names."""
    if len(settings.data) != 1 or not settings.data[0].is_dir():
        named = " ".join(map(str, settings.data)) or "nothing"
        wanted = "it must name one folder, with a file or folder a client"
        raise ValueError(f"--data names {named}: {wanted}")
    folder = settings.data[0]
    known = lambda p: p.is_dir() or p.suffix == ".npz" or p.name.endswith(_TEXT)
    found = sorted(p for p in folder.iterdir() if known(p) and p.name[0] != ".")
    if len(found) < 2:
        raise ValueError(
            f"{folder} holds {len(found)} clients: there must be 2 or more"
        )
    kinds = {_is_text(path): path.name for path in found}
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} holds texts ({kinds[True]}) and images ({kinds[False]}): all "
            "clients must be of one kind"
        )
    return found


def _is_text(path: Path) -> bool:
    return path.name.endswith(_TEXT)


def _upstream(settings, number: int) -> int:
    if settings.checkpoint or not 0 <= settings.upstream < 1:  # which is refused
        return 0
    return min(max(1, round(settings.upstream * number)), number - 1)


def _texts(settings, upstream: list[Path], own: list[Path], note) -> Problem:
    read = text.read_together([*upstream, *own])
    seen = [example for part in read[: len(upstream)] for example in part]
    held = read[len(upstream) :]
    for path, examples in zip(own, held, strict=True):
        _check_number(path, len(examples))
    return problem_of_texts(settings, seen, held, partial(_deal, settings), note)


def _images(settings, upstream: list[Path], own: list[Path], note) -> Problem:
    paths = [*upstream, *own]
    parts = [images.read([path], side=settings.side) for path in paths]
    found = images.together(parts, paths)
    sizes = [len(part.labels) for part in parts]
    for path, size in zip(paths, sizes, strict=True):
        _check_number(path, size)
    if len(found.names) < 2:
        raise ValueError(f"all clients have the class '{found.names[0]}' alone")
    owner = np.repeat(np.arange(len(paths)) - len(upstream), sizes)
    seen, held = (_where(found, owner < 0), _where(found, owner >= 0))
    pool = Batch(jnp.asarray(held.images), jnp.asarray(held.labels))
    deal = partial(_owned, settings, pool, held.labels, owner[owner >= 0])
    made = federations(settings, deal)
    return problem_of(settings, model_of(settings, seen, held, note), made)


def _where(found: Images, chosen: np.ndarray) -> Images:
    return Images(found.images[chosen], found.labels[chosen], found.names)


def _check_number(path: Path, number: int) -> None:
    if number < _FEWEST:
        raise ValueError(f"client {path} has {number} examples: fewer than {_FEWEST}")


def _deal(settings, pool: Batch, owner: np.ndarray):
    return partial(_owned, settings, pool, owner, owner)


def _owned(settings, pool, strata, owner, cell, size):
    rng = np.random.default_rng([cell[1], 1])
    return dealing.owned(
        rng,
        pool,
        strata,
        owner,
        shares=_SHARES,
        heldout=settings.samples,
        test=settings.test_examples,
        size=size,
    )
