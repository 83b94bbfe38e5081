"""What frozen first layers compute is kept, and changes results by rounding alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import potara_jax as pj
from potara_jax import federated, merging
from potara_jax.clients.axis import Layout
from potara_jax.clients.mesh import make_mesh
from potara_jax.clients.training import Train
from potara_jax.data import tokens
from potara_jax.data.federation import take
from potara_jax.data.text import Example
from potara_jax.evaluation.metrics import evaluator
from potara_jax.experiment import frozen
from potara_jax.experiment.checks import Refused
from potara_jax.experiment.context import heldout_of
from potara_jax.experiment.problem import ClientContents, Resources
from potara_jax.experiment.problems import (
    federations,
    image_models,
    images,
    language,
    sentences,
    vision,
)
from potara_jax.experiment.problems.language import LanguageModel
from potara_jax.experiment.problems.vision import VisionModel
from potara_jax.experiments.sentences import EXPERIMENT as SENTENCES
from potara_jax.federated.algorithms.fedex import fedex
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Shared
from potara_jax.merging import likelihoods
from potara_jax.models.llama import Llama, LlamaConfig, Text
from potara_jax.models.vit import ViT, ViTConfig
from tests import small
from tests.experiment.problems.test_image_models import DINOV2
from tests.experiment.problems.test_images import labelled
from tests.experiment.problems.test_sentences import TASKS

pytestmark = pytest.mark.slow

SETTINGS = {
    "cells.seeds": (0,),
    "cells.clients": 2,
    "cells.heterogeneity": ("0.5",),
    "merging.samples": 4,
    "lora.rank": 2,
    "lora.whole": ("head",),
}
CELL, KEY = ("0.5", 0), jax.random.key(0)
TINY = ViTConfig(patch=4, width=16, depth=2, heads=2, classes=3)


def of_images(model, **changes):
    experiment = pj.Experiment("", lambda *_: None).set(SETTINGS | changes)
    mine = labelled(np.arange(60) % 3)
    cells = images.dealt(experiment, mine, test=6)
    return experiment, vision.problem(experiment, model(mine), cells)


def tiny_vit(mine):
    init = lambda: jax.jit(ViT(TINY).init)(KEY, jnp.zeros((1, 8, 8, 3)))["params"]
    return VisionModel(TINY, init, (8, 8, 3), mine.names, image_models._scaled)


def vit(**changes):
    return of_images(tiny_vit, **{"lora.targets": ("block_1/mlp/up",)} | changes)


def dinov2():
    load = lambda mine: image_models.loaded(DINOV2, mine, image_size=8)
    return of_images(load, **{"lora.targets": ("block_2/attention/query",)})


def bert(folder):
    changes = {"lora.targets": ("layer_1/attention/value",), "source.context": 8}
    small.encoder(folder / "bert")
    checkpoint = {"source.checkpoint": str(folder / "bert")}
    experiment = SENTENCES.set(SETTINGS | changes | checkpoint)
    return experiment, sentences.problem(experiment, TASKS, Resources())


def llama():
    """Texts with one, two or three options."""
    tokenizer = tokens.of_bytes()
    config = LlamaConfig(
        vocabulary=tokenizer.size, width=16, hidden=24, depth=3, heads=2, key_heads=1
    )
    text = Text(jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 2), jnp.int32))
    init = jax.jit(Llama(config).init)
    model = LanguageModel(tokenizer, config, lambda: init(KEY, text)["params"])
    changes = {"lora.targets": ("q_proj",), "lora.whole": (), "lora.last_layers": 1}
    experiment = pj.Experiment("", lambda *_: None).set(
        SETTINGS | changes | {"merging.curvature": "empirical"}
    )
    options = "a", "bcd", ""
    examples = [
        Example(f"p{n}", options[: 1 + n % 3], n % (1 + n % 3)) for n in range(48)
    ]
    encoded = language.encode(examples, tokenizer, 12, print)
    pool = language.batch(encoded)
    strata = np.arange(48) % 4
    cells = federations.dealt(experiment, pool, strata, test=6)
    return experiment, language.problem(experiment, model, cells, ClientContents())


def kept(experiment, problem, log=lambda line: None, place="device"):
    settings = dataclasses.replace(experiment.compute, frozen=place)
    return frozen.kept(experiment.replace(compute=settings), problem, log)


def noisy(adapter):
    """An adapter whose every array counts: neither `b` nor the head is zero."""
    noise = lambda x: x + 0.3 * jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape)
    return jax.tree.map(noise, adapter)


def values(problem, adapters):
    """Logits, a gradient, what modules and the head read, of one client's examples."""
    federation = problem.federations[CELL]
    task, batch = problem.task, take(federation.pool, federation.train.index[0, :6])
    adapter = jax.tree.map(lambda x: x[0], adapters)

    @jax.jit
    def compute(base, adapter, batch):
        gradient = jax.grad(task.objective(base))(adapter, batch)
        parts = task.logits, task.judge, task.inputs, task.features
        return gradient, [part(base, adapter, batch) for part in parts if part]

    return compute(problem.base, adapter, batch)


def a_round(problem, adapters):
    """Server, clients and base after a round of FedEx, which changes the base."""
    federation, key = problem.federations[CELL], jax.random.key(1)
    algorithm = fedex(problem.task, Train(optax.sgd(0.1), steps=2, batch_size=4))
    progress = federated.start(algorithm, adapters, key)
    step, shared = (
        federated.make_round(algorithm),
        Shared(problem.base, federation.pool),
    )
    progress = step(shared, progress, federation.train, key, 0)[0]
    base = algorithm.rebase(shared.base, progress.server)
    return progress.server, progress.states, base


def a_merge(problem, adapters):
    """Potara's weights of two models, and what they merge to."""
    federation, key = problem.federations[CELL], jax.random.key(2)
    samples = heldout_of(federation)
    fisher = merging.empirical(likelihoods.one_example(problem.task.logits))
    weight = merging.potara(fisher, damping=merging.relative(0.3), space="core")
    other = jax.tree.map(lambda x: 0.8 * x + 0.05, adapters)
    args = problem.base, adapters, other, samples, federation.train.count, key
    merged = merging.personalise(weight)(*args)
    return merged.weight, merged.adapter


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (vit, "device"),
        (vit, "host"),
        (dinov2, "device"),
        (bert, "disk"),
        (llama, "device"),
    ],
)
def test_results_on_what_is_kept_are_those_of_the_whole_model(make, place, tmp_path):
    experiment, whole = make(tmp_path) if make is bert else make()
    lines = []
    tail = kept(experiment, whole, lines.append, place)
    number, depth = whole.split.layers, whole.split.depth
    assert 0 < number == depth - 1 and tail.split is None
    assert all("frozen" not in path for path in whole.form.sites)
    assert lines[0].startswith(f"the first {number} of {depth} layers are frozen")
    adapters = noisy(federated.stack(whole.adapter(KEY), clients=2))
    # A DINOv2 differs from a ViT only within its blocks.
    for compute in (values,) if make is dinov2 else (values, a_round, a_merge):
        results = [compute(problem, adapters) for problem in (whole, tail)]
        # A Llama's frozen layers sum over all options, of which a mask leaves one.
        atol = 1e-5 if make is llama else 1e-6
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), *results
        )


def test_scores_are_those_of_the_whole_model_however_many_examples_are_read_at_once():
    experiment, whole = vit()
    tail = kept(experiment, whole)
    test = whole.federations[CELL].test
    adapters = noisy(federated.stack(whole.adapter(KEY), clients=2))
    scores = []
    for problem in (whole, tail):
        shared = Shared(problem.base, problem.federations[CELL].pool)
        scores.append(evaluator(problem.task)(shared, adapters, test))
    np.testing.assert_allclose(scores[1].loss, scores[0].loss, atol=1e-6)
    np.testing.assert_array_equal(scores[1].accuracy, scores[0].accuracy)
    assert whole.task.at_once is None and tail.task.at_once == 128
    assert tail.task.again(lambda apply: apply).at_once == 128


@pytest.mark.parametrize(
    ("at_once", "place"), [(1, "device"), (7, "disk"), (60, "host"), (128, "device")]
)
def test_parts_of_any_size_give_the_same(at_once, place, monkeypatch):
    experiment, problem = vit()
    monkeypatch.setattr(frozen, "_MAX_EXAMPLES", at_once)
    pool = kept(experiment, problem, place=place).federations[CELL].pool
    pixels = problem.federations[CELL].pool.inputs
    expected = problem.split.below(problem.base, pixels)
    assert pool.inputs.shape == (60, 5, 16) and pool.inputs.dtype == jnp.float32
    np.testing.assert_allclose(pool.inputs, expected, rtol=1e-5, atol=1e-6)


def test_the_user_is_told_how_long_it_takes_if_it_is_long(monkeypatch):
    experiment, problem = vit()
    monkeypatch.setattr(frozen, "_MAX_EXAMPLES", 20)
    lines = []
    kept(experiment, problem, lines.append)
    assert len(lines) == 1
    monkeypatch.setattr(frozen, "_SLOW", 0)
    kept(experiment, problem, lines.append)
    assert lines[2] == "to compute it takes 0 s from here"


def test_all_cells_share_what_is_kept_and_only_activations_are_in_bfloat16():
    changes = {"cells.seeds": (0, 1), "compute.precision": "bfloat16"}
    tail = kept(*vit(**changes))
    pools = [federation.pool for federation in tail.federations.values()]
    assert len(pools) == 2 and pools[0] is pools[1]
    assert pools[0].inputs.dtype == jnp.bfloat16


def test_clients_in_chunks_and_states_on_the_host_learn_the_same_from_a_file():
    experiment, whole = vit(**{"cells.clients": 4})
    tail = kept(experiment, whole, place="disk")
    federation, key = tail.federations[CELL], jax.random.key(1)
    algorithm = fedit(tail.task, Train(optax.sgd(0.1), steps=2, batch_size=4))
    shared, adapter = Shared(tail.base, federation.pool), tail.adapter(KEY)
    one = algorithm, shared, adapter, federation.train, key
    servers = []
    for layout in (Layout(), Layout(chunk=2)):
        step = federated.make_round(algorithm, layout=layout)
        stacked = federated.stack(adapter, clients=4)
        on_device = federated.start(algorithm, stacked, key)
        for progress in (on_device, federated.start_on_host(*one)):
            rounds = federated.iterate(
                step, shared, federation.train, progress, key, last=1
            )
            servers += [jax.device_get(each.progress.server) for each in rounds]
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for server in servers[1:]:
        jax.tree.map(close, servers[0], server)


def test_several_devices_cannot_read_from_the_host(monkeypatch):
    experiment, whole = vit()
    layout = lambda experiment: Layout(mesh=make_mesh())
    monkeypatch.setattr(frozen.federating, "layout", layout)
    with pytest.raises(Refused, match="frozen is host: it must be device, recom"):
        kept(experiment, whole, place="host")
    monkeypatch.setattr(frozen.memory, "of_device", lambda: 0)
    assert frozen.kept(experiment, whole, print) is whole


# --- Adapters in the last layers -----------------------------------------------------


@pytest.mark.parametrize("target", ["query", "block_1/attention/query", "query|head"])
def test_modules_of_the_last_layers_are_adapted(target):
    changes = {"lora.targets": (target,), "lora.last_layers": 1, "lora.whole": ()}
    problem = vit(**changes)[1]
    expected = ["block_1/attention/query", *(["head"] if "head" in target else [])]
    assert sorted(problem.adapter(KEY)) == expected and problem.split.layers == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora.last_layers": 3}, "lora.last_layers is 3: it must be 2 or less"),
        (
            {"lora.last_layers": 1, "lora.targets": ("block_0/attention/query",)},
            "it must be modules of the last 1 layers",
        ),
    ],
)
def test_last_layers_that_a_model_does_not_have_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        vit(**changes)


# --- When it is kept -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "whole", "layers"),
    [
        ("block_1/attention/query", ("head",), 1),
        ("query", ("head",), 0),
        ("head", (), 2),
        ("block_1/mlp/up", ("head", "norm"), 1),
        ("block_1/mlp/up", ("block_0/norm_2",), 0),
        ("block_1/mlp/up", ("embed",), 0),
    ],
)
def test_layers_are_frozen_before_all_that_is_trained(targets, whole, layers):
    problem = vit(**{"lora.targets": (targets,), "lora.whole": whole})[1]
    assert (problem.split.layers, problem.split.depth) == (layers, 2)


def test_nothing_is_kept_if_no_layer_is_frozen_or_a_setting_says_so():
    experiment, problem = vit(**{"lora.targets": ("query",)})
    assert kept(experiment, problem) is problem
    experiment, problem = vit(**{"compute.frozen": "recompute"})
    assert frozen.kept(experiment, problem, print) is problem


def test_nothing_is_kept_by_default_that_would_not_fit(monkeypatch):
    experiment, problem = vit()
    size = 60 * 5 * 16 * 4
    lines = []
    monkeypatch.setattr(frozen.memory, "of_device", lambda: size / 0.29)
    assert frozen.kept(experiment, problem, lines.append).split is None
    monkeypatch.setattr(frozen.memory, "of_device", lambda: size / 0.31)
    monkeypatch.setattr(frozen, "free_space", lambda folder: size / 0.29)
    assert frozen.kept(experiment, problem, lines.append).split is None
    monkeypatch.setattr(frozen, "free_space", lambda folder: size / 0.31)
    assert frozen.kept(experiment, problem, lines.append) is problem
    assert lines == [
        "the first 1 of 2 layers are frozen: what they compute is kept, in 1.9e-05 GB "
        "of the device's memory (compute.frozen)",
        "the first 1 of 2 layers are frozen: what they compute is kept, in 1.9e-05 GB "
        "of disk (compute.frozen)",
        "the first 1 of 2 layers are frozen and recomputed in every step: to keep what "
        "they compute would take 1.9e-05 GB (compute.frozen)",
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"compute": pj.Compute(frozen="host")}, "frozen is host: it must be auto or"),
        ({"lora": pj.Lora(last_layers=1)}, "last_layers is 1: it must be left out"),
    ],
)
def test_the_layers_of_a_users_model_are_not_known(settings, reason):
    client = jnp.ones((9, 3)), jnp.arange(9) % 2
    with pytest.raises(ValueError, match=reason):
        pj.personalise(
            pj.classification(nn.Dense(2)),
            {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
            pj.Federation.of([client] * 2, heldout=2, test=2, key=KEY),
            **settings,
            key=KEY,
        )
