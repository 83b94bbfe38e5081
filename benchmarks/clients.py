"""The client axis against what users would do instead, each as a ratio within one run.

The model is the digits' ViT: 8 x 8 images, width 64, 4 blocks, rank 8 on query and
value; a client does 5 steps of AdamW on 8 images. Dimension letter: `C` clients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Line
from benchmarks.merging import Sizes
from potara_jax.adapters import lora
from potara_jax.clients.axis import AUTO, Layout, over_clients
from potara_jax.clients.fitting import jit_over_clients, temporaries
from potara_jax.clients.task import classification
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, Ragged
from potara_jax.federated import rounds
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Shared
from potara_jax.models.vit import ViT, ViTConfig

DIGITS = ViTConfig(patch=2, width=64, depth=4, heads=4, classes=10)
STEPS, BATCH, EXAMPLES, RANK, RATE = 5, 8, 40, 8, 5e-3


class Setup(NamedTuple):
    """A ViT with adapters, and a client's training of it."""

    shared: Shared
    adapter: lora.Adapter
    task: object
    train: Train


def setup(config: ViTConfig = DIGITS, *, side: int = 8, batch: int = BATCH) -> Setup:
    """The model at random, with a pool of random images."""
    model = ViT(config)
    images = jax.random.uniform(jax.random.key(0), (512, side, side, 1))
    pool = Batch(images, jnp.arange(512, dtype=jnp.int32) % config.classes)
    sites = lora.find_sites(model, images[:1], targets=["query", "value"])
    base = model.init(jax.random.key(1), images[:1])["params"]
    adapter = lora.init(jax.random.key(2), sites, rank=RANK)
    optimizer = optax.adamw(RATE, weight_decay=1e-4)
    train = Train(optimizer, steps=STEPS, batch_size=batch)
    task = classification(lora.bind(model, scale=2.0))
    return Setup(Shared(base, pool), adapter, task, train)


def local_round(given: Setup) -> Callable:
    """One client's round: `(shared, adapter, examples, key) -> adapter`."""

    def one(shared, adapter, examples, key):
        objective = given.task.objective(shared.base)
        return given.train(objective, adapter, shared.pool, examples, key)[0]

    return one


def arguments(given: Setup, clients: int) -> tuple:
    """What all clients' rounds need: adapters, examples and keys, `[C, ...]`."""
    index = np.random.default_rng(0).integers(0, 512, (clients, EXAMPLES))
    examples = Ragged(
        jnp.asarray(index, jnp.int32), jnp.full(clients, EXAMPLES, jnp.int32)
    )
    keys = jax.random.split(jax.random.key(3), clients)
    return rounds.stack(given.adapter, clients=clients), examples, keys


# --- Speed ---------------------------------------------------------------------------

_AXES = (None, 0, 0, 0)


def _over(one) -> Callable[[Layout], Callable]:
    return lambda layout: over_clients(one, in_axes=_AXES, layout=layout)


def speed(sizes: Sizes) -> Iterator[Line]:
    """Client-steps a second: vectorised, against a loop and `lax.map`."""
    given = setup()
    one = local_round(given)
    for clients in (n for n in _COUNTS if n <= sizes.most):
        args = given.shared, *arguments(given, clients)
        ours = jit_over_clients(_over(one), Layout(AUTO), lambda *a: len(a[3]))
        calls = {
            "a loop over the jitted client": _loop(one, *args),
            "lax.map": partial(jax.jit(_over(one)(Layout(1))), *args),
        }
        times = measure.seconds(
            partial(ours, *args), *calls.values(), repeats=min(sizes.repeats, 5)
        )
        for name, other in zip(calls, times[1:], strict=True):
            aim = ">= 1" if name.startswith("a loop") else ""
            what = f"{clients} clients against {name}"
            yield _faster(what, clients, times[0], other, aim)


_COUNTS = (1, 4, 16, 64, 256, 1024, 4096)


def _faster(what, clients, ours, other, aim) -> Line:
    pace = lambda seconds: f"{clients * STEPS / seconds:,.0f} steps/s"
    return Line(what, pace(ours), pace(other), other / ours, aim)


def _loop(one, shared, *own) -> Callable:
    """A Python loop over clients that lie there one by one."""
    step = jax.jit(one)
    pick = lambda i: jax.tree.map(lambda x: x[i], own)
    clients = [pick(i) for i in range(len(own[-1]))]
    return lambda: [step(shared, *client) for client in clients]


def torch_speed(sizes: Sizes) -> Iterator[Line]:
    """Client-steps a second against PyTorch with PEFT, looping over the clients."""
    from benchmarks import torch_clients

    clients, given = min(64, sizes.most), setup()
    args = given.shared, *arguments(given, clients)
    ours = jit_over_clients(
        _over(local_round(given)), Layout(AUTO), lambda *a: len(a[3])
    )
    theirs = torch_clients.looping(clients, steps=STEPS, batch=BATCH, rank=RANK)
    times = measure.seconds(partial(ours, *args), theirs, repeats=3)
    yield _faster(
        f"{clients} clients against PyTorch and PEFT", clients, *times, ">= 3"
    )


# --- The hardware --------------------------------------------------------------------


def hardware(sizes: Sizes) -> Iterator[Line]:
    """Floating-point operations that training needs, against a large matrix product.

    Four a base parameter and token (forward, and the gradient of the activations; none
    of the base), six a factor's.
    """
    on_cpu = jax.default_backend() == "cpu"
    dtype, clients = ("float32", 16) if on_cpu else ("bfloat16", 32)
    wide = DIGITS if on_cpu else ViTConfig(classes=100, dtype=dtype)
    given = setup(wide, side=8 if on_cpu else 224, batch=BATCH if on_cpu else 16)
    args = given.shared, *arguments(given, clients)
    ours = jax.jit(_over(local_round(given))(Layout(None)))
    rate, product = _product(4096 if not on_cpu else 1024, dtype)
    took, whole = measure.seconds(partial(ours, *args), product, repeats=5)
    needed = clients * STEPS * _operations(given)
    share = needed / took / (rate / whole)
    yield Line(
        f"training, ViT of width {wide.width}, {clients} clients, {dtype}",
        f"{needed / took / 1e9:,.0f} GFLOP/s",
        f"matrix product {rate / whole / 1e9:,.0f} GFLOP/s",
        share,
        "" if on_cpu else ">= 0.55",
    )


def _operations(given: Setup) -> float:
    """Of one step of one client."""
    kernels = [x for x in jax.tree.leaves(given.shared.base) if x.ndim > 1]
    image = given.shared.pool.inputs[:1]
    tokens = (image.shape[1] // _patch(given)) ** 2 + 1
    numbers = 4 * sum(x.size for x in kernels)
    numbers += 6 * sum(x.size for x in jax.tree.leaves(given.adapter))
    return given.train.batch_size * tokens * numbers


def _patch(given: Setup) -> int:
    return given.shared.base["embed"]["kernel"].shape[0]


def _product(side: int, dtype: str) -> tuple[float, Callable]:
    x = jnp.ones((side, side), dtype)
    return 2.0 * side**3, partial(jax.jit(jnp.matmul), x, x)


# --- Memory --------------------------------------------------------------------------


def memory(sizes: Sizes) -> Iterator[Line]:
    """A round's temporaries against the number of clients, and against the chunk."""
    few, many = (256, 4096) if sizes.most >= 256 else (4, 16)
    chunk = min(16, few)
    small, large = (_round_memory(n, chunk) for n in (few, many))
    stacks = _stack_bytes(many) - _stack_bytes(few)
    yield Line(
        f"temporaries of a round, {many} clients, chunk {chunk}, without their uploads",
        measure.show_bytes(large - stacks),
        f"{few} clients: {measure.show_bytes(small)}",
        (large - stacks) / small,
        "<= 1.1",
    )
    whole = _round_memory(few, None)
    yield Line(
        f"temporaries of a round, {few} clients, all at once",
        measure.show_bytes(whole),
        f"chunk {chunk}: {measure.show_bytes(small)}",
        whole / small,
    )


def _round_memory(clients: int, chunk: int | None) -> int:
    given = setup()
    step = rounds.make_round(fedit(given.task, given.train), layout=Layout(chunk))
    progress = rounds.start(
        fedit(given.task, given.train), rounds.stack(given.adapter, clients=clients)
    )
    _, examples, keys = arguments(given, clients)
    args = given.shared, progress, examples, keys[0], np.int32(0)
    return temporaries(step.programs[0], *args)


def _stack_bytes(clients: int) -> int:
    return clients * measure.size(setup().adapter)


# --- Start-up ------------------------------------------------------------------------


def start_up(sizes: Sizes) -> Iterator[Line]:
    """A process from its start to the first finished round, with kept programs."""
    del sizes
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_first_round(folder) for _ in range(2))
    yield Line(
        "start to the first finished round, programs kept",
        measure.show_seconds(warm),
        f"cold {measure.show_seconds(cold)}",
        warm / cold,
        "<= 1",
    )


def _first_round(cache: str) -> float:
    more = {"JAX_COMPILATION_CACHE_DIR": cache}
    more["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    return _beside("first_round", **more)["seconds"]


# --- Scaling -------------------------------------------------------------------------


def scaling(sizes: Sizes) -> Iterator[Line]:
    """Rounds over 1 to 8 devices of the host, and the share of the collectives."""
    clients = 64 if sizes.most >= 64 else 8
    found = {n: _on_devices(n, clients) for n in (1, 2, 4, 8)}
    one = found[1]["strong"]
    for devices, took in found.items():
        cores = min(devices, os.cpu_count() or 1)
        yield Line(
            f"strong scaling, {clients} clients, {devices} devices ({cores} cores)",
            measure.show_seconds(took["strong"]),
            f"1 device: {measure.show_seconds(one)}",
            one / took["strong"],
        )
        yield Line(
            f"weak scaling, {clients // 8} clients a device, {devices} devices",
            measure.show_seconds(took["weak"]),
            f"1 device: {measure.show_seconds(found[1]['weak'])}",
            found[1]["weak"] * devices / took["weak"],
        )
        yield Line(
            f"collectives' share of a round, {devices} devices",
            measure.show_seconds(took["collective"]),
            f"round {measure.show_seconds(took['strong'])}",
            took["collective"] / took["strong"],
        )


def _on_devices(devices: int, clients: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    return _beside("scaled", str(clients), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def _beside(what: str, *words: str, **environment: str) -> dict:
    """What a process of its own measures, see `benchmarks.beside`."""
    command = [sys.executable, "-m", "benchmarks.beside", what, *words]
    output = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True
    )
    if output.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {output.stderr[-500:]}")
    return json.loads(output.stdout.splitlines()[-1])


CASES = {
    "speed": speed,
    "torch": torch_speed,
    "hardware": hardware,
    "memory": memory,
    "start": start_up,
    "scaling": scaling,
}
