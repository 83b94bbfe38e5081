"""The client axis against what users would do instead, each as a ratio within one run.

Dimension letter: `C` clients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Line, Point
from benchmarks.merging import Sizes
from benchmarks.model import (
    BATCH,
    RANK,
    STEPS,
    Setup,
    arguments,
    language,
    local_round,
    number,
    over,
    setup,
)
from potara_jax import federated, merging
from potara_jax.clients import axis
from potara_jax.clients.axis import AUTO, Layout, over_clients
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.federated import rounds
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.merging import Samples, registry
from potara_jax.models.llama import LlamaConfig
from potara_jax.models.vit import ViTConfig

# --- Against a loop ------------------------------------------------------------------

_COUNTS = (1, 4, 16, 64, 256, 1024, 4096)


def speed(sizes: Sizes) -> Iterator[Line]:
    """Client-steps per second: vectorised, against a loop and `lax.map`."""
    given = setup()
    one = local_round(given)
    for clients in (n for n in _COUNTS if n <= sizes.max_clients):
        args = given.shared, *arguments(given, clients)
        ours = jit_over_clients(over(one), Layout(AUTO), number)
        calls = {
            "a loop over the jitted client": _loop(one, *args),
            "lax.map": partial(jax.jit(over(one)(Layout(1))), *args),
        }
        repeats = min(sizes.repeats, 5 if clients < 256 else 3)
        times = measure.seconds(partial(ours, *args), *calls.values(), repeats=repeats)
        for name, other in zip(calls, times[1:], strict=True):
            aim = ">= 1" if name.startswith("a loop") else ""
            yield faster(name, clients, times[0], other, aim)


def faster(other: str, clients: int, ours: float, theirs: float, aim="") -> Line:
    """A line that compares the seconds of a round, ours and theirs."""
    paces = {
        name: clients * STEPS / seconds
        for name, seconds in (("this project", ours), (other, theirs))
    }
    panel = "client-steps per second, by clients"
    return Line(
        f"a round of {clients} clients, against {other}",
        f"{paces['this project']:,.0f} steps/s",
        f"{paces[other]:,.0f} steps/s",
        theirs / ours,
        aim,
        tuple(Point(panel, name, clients, value) for name, value in paces.items()),
    )


def _loop(one, shared, *stacked) -> Callable:
    """A Python loop over clients, whose arrays are separate from the start."""
    step = jax.jit(one)
    clients = [
        jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(stacked[-1]))
    ]
    return lambda: [step(shared, *client) for client in clients]


# --- Against other software ----------------------------------------------------------


def torch(sizes: Sizes) -> Iterator[Line]:
    """Against PyTorch with PEFT, looping over the clients."""
    from benchmarks import torch_clients

    clients = min(64, sizes.max_clients)
    theirs = torch_clients.looping(clients, steps=STEPS, batch=BATCH, rank=RANK)
    times = measure.seconds(_round(clients), theirs, repeats=3)
    yield faster("PyTorch and PEFT in a loop", clients, *times, ">= 3")


def fedjax(sizes: Sizes) -> Iterator[Line]:
    """The same FedIT round by FedJAX's federated averaging."""
    from benchmarks import fedjax_clients

    for clients in (n for n in (16, 256) if n <= sizes.max_clients):
        theirs = fedjax_clients.averaging(setup(), clients)
        times = measure.seconds(_round(clients), theirs, repeats=3)
        yield faster("FedJAX", clients, *times)


def flower(sizes: Sizes) -> Iterator[Line]:
    """The same FedIT round by Flower's simulation engine."""
    from benchmarks import flower_clients

    clients = min(64, sizes.max_clients)
    theirs = flower_clients.seconds_of_a_round(clients)
    ours = measure.seconds(_round(clients), repeats=3)[0]
    yield faster("Flower's simulation engine", clients, ours, theirs)


def _round(clients: int) -> Callable:
    """A whole round of FedIT."""
    given = setup()
    algorithm = fedit(given.task, given.train)
    adapters, examples, keys = arguments(given, clients)
    step = rounds.make_round(algorithm, layout=Layout(AUTO))
    state = {"progress": federated.start(algorithm, adapters)}

    def run():
        args = given.shared, state["progress"], examples, keys[0]
        state["progress"], report = step(*args, 1)
        return state["progress"], report

    return run


# --- Clients with different amounts of work ------------------------------------------


def _work(shared, adapters, examples, keys):
    return examples.share


def ragged(sizes: Sizes) -> Iterator[Line]:
    """Clients with different numbers of steps: grouped by work, against in order."""
    clients = min(256, sizes.max_clients)
    given = setup()
    one, layout = local_round(given), Layout(min(16, clients))
    adapters, examples, keys = arguments(given, clients)
    share = np.random.default_rng(1).lognormal(-1.0, 0.7, clients).clip(0.2, 1)
    examples = examples._replace(share=jnp.asarray(share, jnp.float32))
    args = given.shared, adapters, examples, keys
    all_clients = partial(over_clients, one, in_axes=(None, 0, 0, 0), layout=layout)
    grouped = jax.jit(all_clients(work=_work))
    plain = jax.jit(all_clients())
    ours, theirs = measure.seconds(
        partial(grouped, *args), partial(plain, *args), repeats=min(sizes.repeats, 5)
    )
    yield Line(
        f"{clients} clients with different numbers of steps, grouped by work",
        measure.show_seconds(ours),
        f"in order {measure.show_seconds(theirs)}",
        theirs / ours,
        ">= 1",
    )
    steps = jnp.ceil(examples.share * STEPS)
    computed = float(axis.overhead(steps, layout))
    yield Line(
        "their steps that are computed, over those that are needed",
        f"{computed * float(steps.sum()):,.0f}",
        f"{float(steps.sum()):,.0f}",
        computed,
    )


# --- The hardware --------------------------------------------------------------------


def hardware(sizes: Sizes) -> Iterator[Line]:
    """Operations that training needs, against those of a large matrix product."""
    del sizes
    on_cpu = jax.default_backend() == "cpu"
    for make in (_vit, _llama):
        what, given, clients, dtype = make(on_cpu)
        args = given.shared, *arguments(given, clients)
        ours = jit_over_clients(over(local_round(given)), Layout(AUTO), number)
        rate, product = _product(1024 if on_cpu else 8192, dtype)
        took, whole = measure.seconds(partial(ours, *args), product, repeats=5)
        needed = clients * STEPS * given.operations
        aim = ">= 0.55" if not on_cpu and make is _vit else ""
        yield Line(
            f"training, {what}, {clients} clients, {dtype}",
            f"{needed / took / 1e9:,.0f} GFLOP/s",
            f"matrix product {rate / whole / 1e9:,.0f} GFLOP/s",
            needed / took / (rate / whole),
            aim,
        )


def _vit(on_cpu: bool) -> tuple[str, Setup, int, str]:
    if on_cpu:
        return "the digits' ViT", setup(), 16, "float32"
    wide = ViTConfig(classes=100, dtype="bfloat16")
    given = setup(wide, side=224, batch=16, rank=16)
    return "ViT-B/16, 224 pixels", given, 32, "bfloat16"


def _llama(on_cpu: bool) -> tuple[str, Setup, int, str]:
    if on_cpu:
        small = LlamaConfig(vocabulary=259, width=128, hidden=320, depth=6, heads=4)
        small = dataclasses.replace(small, key_heads=2)
        given = language(small, length=64, batch=8, rank=8)
        return "a Llama of 1M parameters, 64 tokens", given, 8, "float32"
    large = LlamaConfig(dtype="bfloat16", remat=True)
    given = language(large, length=512, batch=4, rank=16)
    return "a Llama of 1.2B parameters, 512 tokens", given, 8, "bfloat16"


def _product(side: int, dtype: str) -> tuple[float, Callable]:
    x = jnp.ones((side, side), dtype)
    return 2.0 * side**3, partial(jax.jit(jnp.matmul), x, x)


# --- Merging, as a share of training -------------------------------------------------

_CLIENTS, _SAMPLES = 20, 30
# Of the digits' default, and of the paper's vision experiment (400 and 300).
_ROUNDS = {"digits": 60, "the paper's CIFAR-100": 700}


def share(sizes: Sizes) -> Iterator[Line]:
    """Every merge weight, with its merge, of 20 clients, over their training."""
    given = setup()
    adapters, examples, keys = arguments(given, _CLIENTS)
    train = jit_over_clients(over(local_round(given)), Layout(AUTO), number)
    calls = {"training": partial(train, given.shared, adapters, examples, keys)}
    samples = jax.tree.map(lambda x: x[examples.index[:, :_SAMPLES]], given.shared.pool)
    samples = Samples(samples, jnp.full(_CLIENTS, _SAMPLES))
    other = calls["training"]()
    clients = given.shared.base, other, adapters, samples, examples.count, keys[0]
    for name, (estimator, space) in _estimators(given).items():
        program = merging.personalise(estimator, space=space, layout=Layout(AUTO))
        calls[name] = partial(program, *clients)
    times = measure.seconds(*calls.values(), repeats=min(sizes.repeats, 5))
    for name, took in list(zip(calls, times, strict=True))[1:]:
        for experiment, count in _ROUNDS.items():
            yield Line(
                f"{name} and merge, against the {count} rounds of {experiment}",
                measure.show_seconds(took),
                f"training {measure.show_seconds(count * times[0])}",
                took / (count * times[0]),
                "<= 0.02",
            )


def _estimators(given: Setup) -> dict[str, tuple[merging.Estimator, str]]:
    """Every weight that looks at samples, and the space that it is merged in.

    Potara's has the exact Fisher, and a second row the empirical one.
    """
    one = merging.one_example(given.task.logits)
    exact, empirical = merging.exact(one), merging.empirical(one)
    needed = {"loss": given.task.loss, "logits": given.task.logits}
    estimators = {
        name: (entry.build(**needed, likelihood=exact), entry.space)
        for name, entry in registry.weights().items()
        if entry.needs != "nothing"
    }
    entry = registry.weights()["potara"]
    fast = entry.build(likelihood=empirical), entry.space
    return estimators | {"potara, empirical Fisher": fast}


# Cases that need other software.
PEERS = {"torch": torch, "fedjax": fedjax, "flower": flower}
CASES = {
    "speed": speed,
    **PEERS,
    "ragged": ragged,
    "hardware": hardware,
    "share": share,
}
