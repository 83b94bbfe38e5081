"""What a round costs: memory, start-up, and its scaling over devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks import measure
from benchmarks.measure import Line, Point
from benchmarks.merging import Sizes
from benchmarks.model import arguments, setup
from potara_jax import federated
from potara_jax.clients.axis import Layout
from potara_jax.clients.fitting import temporaries
from potara_jax.federated import rounds
from potara_jax.federated.algorithms.fedit import fedit

# --- Memory --------------------------------------------------------------------------


def memory(sizes: Sizes) -> Iterator[Line]:
    """A round's temporaries against the number of clients, and against the chunk."""
    few, many = (256, 4096) if sizes.max_clients >= 256 else (4, 16)
    chunk = min(16, few)
    reference = _own_memory(few, chunk)
    for clients in sorted({few, min(4 * few, many), many}):
        took = _own_memory(clients, chunk)
        yield _memory_line(f"{clients} clients", took, clients, reference, few)
    for size in (1, 4, 16, 64, 256):
        if size <= few:
            took = _own_memory(few, size)
            yield _memory_line(f"chunk {size}", took, size, reference, few)


def _memory_line(what: str, took: int, at: int, reference: int, few: int) -> Line:
    by_clients = what.endswith("clients")
    panel = f"bytes of a round's temporaries, by {'clients' if by_clients else 'chunk'}"
    more = f", {few} clients" if not by_clients else ", chunk 16"
    return Line(
        f"temporaries of a round, {what}{more}, without the stack of uploads",
        measure.show_bytes(took),
        f"{few} clients, chunk 16: {measure.show_bytes(reference)}",
        took / reference,
        "<= 1.1" if by_clients else "",
        (Point(panel, "FedIT on the digits' ViT", at, took),),
    )


def _own_memory(clients: int, chunk: int) -> int:
    """Temporaries of a round, less its uploads: one adapter per client."""
    return _round_memory(clients, chunk) - clients * measure.size(setup().adapter)


def _round_memory(clients: int, chunk: int) -> int:
    given = setup()
    adapters, examples, keys = arguments(given, clients)
    algorithm = fedit(given.task, given.train)
    step = rounds.make_round(algorithm, layout=Layout(chunk))
    progress = federated.start(algorithm, adapters, keys[0])
    args = given.shared, progress, examples, keys[0], np.int32(0)
    return temporaries(step.programs[0], *args)


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
    more["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return _beside("first_round", **more)["seconds"]


# --- Scaling -------------------------------------------------------------------------


def scaling(sizes: Sizes) -> Iterator[Line]:
    """Rounds over 1 to 8 devices of the host, and the share of the collectives."""
    clients = 64 if sizes.max_clients >= 64 else 8
    times = {n: _on_devices(n, clients) for n in (1, 2, 4, 8)}
    one = times[1]
    for devices, took in times.items():
        cores = min(devices, os.cpu_count() or 1)
        where = f"{devices} devices ({cores} cores)"
        faster = one["strong"] / took["strong"]
        more = one["weak"] * devices / took["weak"]
        yield _scaled(f"{clients} clients, {where}", "strong", devices, faster, took)
        each = f"{clients // 8} clients per device, {where}"
        yield _scaled(each, "weak", devices, more, took)
        yield Line(
            f"collectives' share of a round, {devices} devices",
            measure.show_seconds(took["collective"]),
            f"round {measure.show_seconds(took['strong'])}",
            took["collective"] / took["strong"],
        )


def _scaled(what: str, kind: str, devices: int, ratio: float, took: dict) -> Line:
    """Work per second, over that of one device."""
    return Line(
        f"{kind} scaling, {what}",
        measure.show_seconds(took[kind]),
        "1 device",
        ratio,
        points=(Point("work per second, over one device's", kind, devices, ratio),),
    )


def _on_devices(devices: int, clients: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    return _beside("scaled", str(clients), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def _beside(what: str, *words: str, **environment: str) -> dict:
    """What a separate process measures, see `benchmarks.beside`."""
    command = [sys.executable, "-m", "benchmarks.beside", what, *words]
    output = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True
    )
    if output.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {output.stderr[-500:]}")
    return json.loads(output.stdout.splitlines()[-1])


CASES = {"memory": memory, "start": start_up, "scaling": scaling}
