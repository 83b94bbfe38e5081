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
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import lora
from potara_jax.clients.task import classification
from potara_jax.data import images
from potara_jax.data.federation import Batch, Federation
from potara_jax.data.images import Images
from potara_jax.experiment.problem import Problem, dealt, federations
from potara_jax.experiment.settings import (
    Settings,
    check_apart,
    check_base,
    check_least,
    check_most,
)
from potara_jax.experiment.vision import Model, problem_of
from potara_jax.models import publishing, vit, weights
from potara_jax.models.pretraining import pretrain
from potara_jax.models.vit import ViT, ViTConfig
from potara_jax.runs.bases import cached_base

_RATE = 1e-3
LARGEST = 4096  # pixels of a side


@dataclasses.dataclass(frozen=True)
class OwnImages(Settings):
    """Federated and local LoRA on a ViT for your own images, merged by Potara."""

    data: tuple[Path, ...] = ()
    """Files of images and labels (.npz), or folders with one sub-folder a class."""
    out: Path = Path("runs/images")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    heterogeneity: tuple[str, ...] = ("0.1", "0.5")
    """Dirichlet concentrations of the clients' classes; `shards2`: two classes each;
    `tasks`: one class each."""
    side: int | None = None
    """Resize images to so many pixels. Default: as they are."""
    checkpoint: str | None = None
    """Folder, or name on the hub, of a pre-trained ViT. Default: one is pre-trained."""
    train_head: bool = True
    """Train the head too; it then travels and merges with the adapter."""
    curvature: Literal["exact", "empirical", "sampled"] = "empirical"
    """Which Fisher: over all classes, which takes a backward pass for each of them; of
    the data's labels; or of labels drawn."""
    upstream: float = 0.6
    """Share of the classes that the base is pre-trained on, and no client has."""
    test_examples: int = 100
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
        check_apart(self)
        check_least(self, 1, "side", "test_examples", "width", "depth", "base_batch")
        check_most(self, LARGEST, "side")
        check_base(self)
        if not 0 <= self.upstream < 1:
            raise ValueError(f"--upstream is {self.upstream}: it must be in [0, 1)")
        if self.width % 32:
            raise ValueError(f"--width is {self.width}: it must be a multiple of 32")


def problem(settings: OwnImages, note) -> Problem:
    """A ViT and its federations, one a heterogeneity and seed."""
    found, again, unclear = images.once(images.read(settings.data, side=settings.side))
    if again:
        note(f"{again} images are there twice: each is kept once")
    if unclear:
        note(f"{unclear} of them have copies with another label: none of those is kept")
    return problem_of_images(found, settings, note)


def problem_of_images(
    found: Images, settings: OwnImages, note, *, testing: np.ndarray | None = None
) -> Problem:
    """The same of any images; testing: which of them are for tests alone."""
    upstream, own = _classes(found, settings)
    if testing is not None:
        testing = testing[np.isin(found.labels, _own_classes(found, settings))]
    held = _federations(own, settings, testing)
    return problem_of(settings, model_of(settings, upstream, own, note), held)


def model_of(settings, upstream: Images, own: Images, note) -> Model:
    """A checkpoint's ViT, or one that is pre-trained, with a head for the clients."""
    if settings.checkpoint:
        return _loaded(settings, own)
    config, classes = _sized(settings, upstream), len(own.names)
    base = partial(_cached, config, settings, upstream, note)
    config = dataclasses.replace(config, classes=classes)
    read, shape = lambda: _with_head(base(), classes), own.images.shape[1:]
    told = {"preprocessor_config.json": _preprocessor(shape)}
    return Model(config, read, shape, own.names, _scaled, told)


def _scaled(image):
    return image.astype(jnp.float32) / 127.5 - 1


def _preprocessor(shape) -> str:
    """What `_scaled` does, as Hugging Face tells it."""
    half = [0.5] * shape[-1]
    told = {"image_processor_type": "ViTImageProcessor", "do_rescale": True}
    told |= {"size": {"height": shape[0], "width": shape[1]}, "do_resize": True}
    told |= {"do_normalize": True, "image_mean": half, "image_std": half}
    return json.dumps(told, indent=1) + "\n"


# --- Who holds what ------------------------------------------------------------------


def _classes(found: Images, settings: OwnImages) -> tuple[Images, Images]:
    """The images of the base's classes, and those of the clients'."""
    own = _own_classes(found, settings)
    upstream = np.setdiff1d(np.arange(len(found.names)), own)
    if len(own) < 2 or (len(upstream) < 2 and not settings.checkpoint):
        raise ValueError(
            f"{len(found.names)} classes are too few: {len(upstream)} for the base and "
            f"{len(own)} for the clients; set another --upstream"
        )
    return _of(found, upstream), _of(found, own)


def _own_classes(found: Images, settings: OwnImages) -> np.ndarray:
    """The clients' classes."""
    order = np.random.default_rng([settings.base_seed, 0]).permutation(len(found.names))
    share = 0 if settings.checkpoint else settings.upstream
    return np.sort(order[round(share * len(order)) :])


def _of(found: Images, classes: np.ndarray) -> Images:
    """The images of some classes, with labels from 0."""
    place = np.full(len(found.names), -1)
    place[classes] = np.arange(len(classes))
    labels = place[found.labels]
    names = tuple(found.names[c] for c in classes)
    return Images(
        found.images[labels >= 0], labels[labels >= 0].astype(np.int32), names
    )


def _federations(own: Images, settings, testing) -> dict[tuple[str, int], Federation]:
    for label, count in enumerate(np.bincount(own.labels, minlength=len(own.names))):
        if count < 5:
            name = own.names[label]
            raise ValueError(
                f"class '{name}' has {count} images: it must have 5 or more"
            )
    pool = Batch(jnp.asarray(own.images), jnp.asarray(own.labels))
    how = {"testing": testing, "most": settings.test_examples}
    return federations(settings, partial(dealt, settings, pool, own.labels, **how))


# --- The base ------------------------------------------------------------------------


def _sized(settings, upstream: Images) -> ViTConfig:
    """A ViT that suits the images: eight patches a side, where that divides."""
    side = upstream.images.shape[1]
    patch = next(p for p in (max(1, side // 8), 4, 2, 1) if side % p == 0)
    return ViTConfig(
        patch=patch,
        width=settings.width,
        depth=settings.depth,
        heads=settings.width // 32,
        classes=len(upstream.names),
    )


def _cached(config, settings, upstream: Images, note) -> lora.Params:
    recipe = {"model": dataclasses.asdict(config), "steps": settings.base_steps}
    recipe |= {"seed": settings.base_seed, "batch_size": settings.base_batch}
    recipe |= {"learning_rate": _RATE}
    pool = Batch(jnp.asarray(upstream.images), jnp.asarray(upstream.labels))
    train = lambda: _train(config, settings, pool, note)
    return cached_base(settings.cache, recipe, pool, train, note)


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


def _loaded(settings, own: Images) -> Model:
    """A Hugging Face ViT with a new head, and how it wants its images."""
    folder, classes = weights.folder_of(settings.checkpoint), len(own.names)
    found = weights.read_config(folder)
    with weights.understanding(folder / weights.CONFIG):
        config = vit.config_of(found, classes=classes)
    colours, side = found.get("num_channels", 3), found.get("image_size", 224)
    if not isinstance(side, int):
        raise ValueError(f"{folder} wants images of {side}: they must be square")
    if own.images.shape[-1] != colours:
        raise ValueError(
            f"{folder} wants images of {colours} colours, not {own.images.shape[-1]}"
        )
    prepare = _normaliser(folder, side, colours)
    image = jax.eval_shape(prepare, jnp.zeros((1, *own.images.shape[1:])))
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    body = {name: x for name, x in shapes.items() if name != "head"}
    table = vit.TABLE._replace(ignored=(*vit.TABLE.ignored, "classifier.*"))
    base = partial(weights.load, folder, table, body, dtype="float32")
    return Model(
        config,
        lambda: _with_head(base(), classes),
        image.shape[1:],
        own.names,
        prepare,
        publishing.read_files(folder),
        settings.checkpoint,
    )


def _normaliser(folder: Path, side: int, colours: int) -> Callable:
    """Enlarged to the model's side, and as its `preprocessor_config.json` has it."""
    path = folder / "preprocessor_config.json"
    found = weights.read_object(path) if path.is_file() else {}
    with weights.understanding(path):
        told = (found.get(n, [0.5] * colours) for n in ("image_mean", "image_std"))
        mean, spread = (np.array(values, np.float32) for values in told)
    fits = mean.shape == spread.shape == (colours,) and np.isfinite(mean).all()
    if not fits or not (spread > 0).all():
        raise ValueError(f"{path}: image_mean and image_std must be {colours} numbers")

    def prepare(image):
        image = image.astype(jnp.float32)
        shape = len(image), side, side, image.shape[-1]
        if image.shape != shape:
            image = jax.image.resize(image, shape, "bilinear")
        return (image / 255 - mean) / spread

    return prepare
