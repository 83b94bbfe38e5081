"""Your own images: a ViT pre-trained on some classes, federated on the others.

    potara run images --data a.npz b.npz
    potara run images --data FOLDER               one sub-folder a class

Files hold `images` (uint8 `[N, H, W, C]`), `labels` and maybe `names`. A ViT that suits
the images is pre-trained on a share of the classes, or `--checkpoint` names a Hugging
Face folder; clients hold the other classes, and train a head for them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base import cached_base
from experiments.problem import Problem, federations
from experiments.settings import Settings
from experiments.vision import problem_of
from potara_jax.adapters import lora
from potara_jax.clients.task import classification
from potara_jax.data import dealing, images, partition
from potara_jax.data.federation import Batch, Federation
from potara_jax.data.images import Images
from potara_jax.models import vit, weights
from potara_jax.models.pretraining import pretrain
from potara_jax.models.vit import ViT, ViTConfig

_SHARES = {"train": 0.6, "heldout": 0.2, "test": 0.2}
_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class OwnImages(Settings):
    """Federated and local LoRA on a ViT for your own images, merged by Potara."""

    data: tuple[Path, ...] = ()
    """Files of images and labels (.npz), or folders with one sub-folder a class."""
    out: Path = Path("runs/images")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    side: int | None = None
    """Resize images to so many pixels. Default: as they are."""
    checkpoint: Path | None = None
    """Hugging Face folder of a pre-trained ViT. Default: one is pre-trained."""
    train_head: bool = True
    """Train the head too; it then travels and merges with the adapter."""
    upstream: float = 0.6
    """Share of the classes that the base is pre-trained on, and no client has."""
    test_examples: int = 200
    """Test images of a client, at most, in its proportions."""
    width: int = 96
    """Width of the ViT that is pre-trained."""
    depth: int = 6
    """Its blocks."""
    base_seed: int = 0
    """Seed of the upstream classes, and of the base's pre-training."""
    base_steps: int = 1500
    """Steps of the base's pre-training."""
    base_batch: int = 64
    """Images of such a step."""
    merges: tuple[str, ...] = (
        *("uniform", "potara delta, rank r", "potara core, per module"),
        *("potara core, held-out", "fisher", "hermite", "grid", "ties", "dare"),
    )
    """Rows of the table that merge, by name; potara factor, potara core and
    hermite_bayes are always there."""

    def check(self) -> None:
        """As `Settings.check`, and those of the images."""
        super().check()
        if not self.data:
            raise ValueError("--data names nothing: name .npz files or folders")
        for name in ("side", "test_examples", "width", "depth", "base_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is {value}: it must be above 0")
        if self.base_seed < 0 or self.base_steps < 0:
            raise ValueError("--base-seed and --base-steps must be 0 or more")
        if not 0 <= self.upstream < 1:
            raise ValueError(f"--upstream is {self.upstream}: it must be in [0, 1)")
        if self.width % 32:
            raise ValueError(f"--width is {self.width}: it must be a multiple of 32")


def problem(settings: OwnImages, note) -> Problem:
    """A ViT and its federations, one a heterogeneity and seed."""
    found = images.read(settings.data, side=settings.side)
    upstream, own = _classes(found, settings)
    held = _federations(own, settings)
    prepare = _scaled
    if settings.checkpoint:
        config, base, prepare = _loaded(settings, own)
    else:
        config, base = _pretrained(settings, upstream, len(own.names), note)
    shape = own.images.shape[1:]
    return problem_of(settings, config, base, held, shape=shape, prepare=prepare)


def _scaled(image):
    return image.astype(jnp.float32) / 127.5 - 1


# --- Who holds what ------------------------------------------------------------------


def _classes(found: Images, settings: OwnImages) -> tuple[Images, Images]:
    """The base's classes, and the clients'."""
    order = np.random.default_rng([settings.base_seed, 0]).permutation(len(found.names))
    share = 0 if settings.checkpoint else settings.upstream
    number = round(share * len(order))
    if len(order) - number < 2 or (number < 2 and not settings.checkpoint):
        raise ValueError(
            f"{len(order)} classes are too few: {number} for the base and "
            f"{len(order) - number} for the clients; set another --upstream"
        )
    return _of(found, np.sort(order[:number])), _of(found, np.sort(order[number:]))


def _of(found: Images, classes: np.ndarray) -> Images:
    """The images of some classes, with labels from 0."""
    place = np.full(len(found.names), -1)
    place[classes] = np.arange(len(classes))
    labels = place[found.labels]
    names = tuple(found.names[c] for c in classes)
    return Images(
        found.images[labels >= 0], labels[labels >= 0].astype(np.int32), names
    )


def _federations(own: Images, settings) -> dict[tuple[str, int], Federation]:
    for label, count in enumerate(np.bincount(own.labels, minlength=len(own.names))):
        if count < 5:
            name = own.names[label]
            raise ValueError(
                f"class '{name}' has {count} images: it must have 5 or more"
            )
    pool = Batch(jnp.asarray(own.images), jnp.asarray(own.labels))
    return federations(settings, partial(_federation, own, pool, settings))


def _federation(own: Images, pool, settings, cell, size) -> Federation:
    heterogeneity, seed = cell
    rng = np.random.default_rng([seed, 1])
    parts = partition.split(rng, own.labels, _SHARES)
    train = parts["train"]
    how = {"clients": settings.clients}
    groups = dealing.deal(rng, own.labels[train], heterogeneity, **how)
    return dealing.federate(
        rng,
        pool,
        own.labels,
        parts,
        [train[group] for group in groups],
        heldout=settings.samples,
        test=settings.test_examples,
        size=size,
    )


# --- The base ------------------------------------------------------------------------


def _pretrained(settings, upstream: Images, classes: int, note):
    """A ViT after its pre-training, with a new head for the clients' classes."""
    side = upstream.images.shape[1]
    patch = next(p for p in (max(1, side // 8), 4, 2, 1) if side % p == 0)
    config = ViTConfig(
        patch=patch,
        width=settings.width,
        depth=settings.depth,
        heads=settings.width // 32,
        classes=len(upstream.names),
    )
    recipe = {"model": dataclasses.asdict(config), "steps": settings.base_steps}
    recipe |= {"seed": settings.base_seed, "batch_size": settings.base_batch}
    recipe |= {"learning_rate": _RATE}
    pool = Batch(jnp.asarray(upstream.images), jnp.asarray(upstream.labels))
    train = lambda: _train(config, settings, pool, note)
    base = cached_base(settings.cache, recipe, pool, train, note)
    return dataclasses.replace(config, classes=classes), _with_head(base, classes)


def _train(config, settings, pool: Batch, note) -> lora.Params:
    model = ViT(config)
    apply = lora.bind(model, scale=1.0)
    task = classification(lambda base, adapter, x: apply(base, adapter, _scaled(x)))
    start, steps = jax.random.split(jax.random.key(settings.base_seed))
    return pretrain(
        lambda params, batch: task.objective(params)({}, batch),
        model.init(start, _scaled(pool.inputs[:1]))["params"],
        pool,
        steps,
        steps=settings.base_steps,
        batch_size=settings.base_batch,
        learning_rate=_RATE,
        told=lambda step, loss: note(
            f"base: step {step} of {settings.base_steps}, loss {loss:.3f}"
        ),
    )[0]


def _with_head(base: lora.Params, classes: int) -> lora.Params:
    """The base with a head of zeros."""
    width = base["norm"]["scale"].shape[0]
    head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    return dict(base) | {"head": head}


def _loaded(settings, own: Images) -> tuple[ViTConfig, lora.Params, Callable]:
    """A Hugging Face ViT with a new head, and how it wants its images."""
    folder, classes = settings.checkpoint, len(own.names)
    found = weights.read_config(folder)
    config = vit.config_of(found, classes=classes)
    side = found.get("image_size", 224)
    if own.images.shape[1:] != (side, side, found.get("num_channels", 3)):
        raise ValueError(
            f"{folder} wants images of {side} x {side}, not "
            f"{' x '.join(map(str, own.images.shape[1:]))}; set --side {side}"
        )
    image = jax.ShapeDtypeStruct((1, *own.images.shape[1:]), jnp.float32)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    body = {name: x for name, x in shapes.items() if name != "head"}
    table = vit.TABLE._replace(ignored=(*vit.TABLE.ignored, "classifier.*"))
    base = weights.load(folder, table, body, dtype="float32")
    return config, _with_head(base, classes), _normaliser(folder)


def _normaliser(folder: Path) -> Callable:
    """As the folder's `preprocessor_config.json` has it, or to [-1, 1]."""
    path = folder / "preprocessor_config.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    mean = np.array(found.get("image_mean", [0.5] * 3), np.float32)
    spread = np.array(found.get("image_std", [0.5] * 3), np.float32)
    return lambda image: (image.astype(jnp.float32) / 255 - mean) / spread
