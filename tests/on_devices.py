"""Checks that need several devices or processes, run beside the tests.

    python -m tests.on_devices CHECKS            eight devices on the host
    python -m tests.on_devices CHECKS ADDRESS I  process I of two, of four devices each

The names of checks are separated by commas. Prints their results as JSON, on the last
line.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np

from potara_jax.clients import hosts
from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.clients.mesh import make_mesh, replicated, split_base
from potara_jax.federated import rounds
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.registry import algorithms
from potara_jax.federated.streaming import start_on_host
from tests.helpers_federated import problem, start, task, whole_batches

CLIENTS, ROUNDS = 16, 3
COUNTS = tuple(2 + i % 3 for i in range(CLIENTS))
NAMES = ("scaffold", "rolora")
CONDITIONS = {
    "everybody": EVERYBODY,
    "ragged": Conditions(cohort=5, stragglers=0.5, dropout=0.2),
}
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute)\(")


def values(tree) -> list:
    """All numbers of a pytree, as every process can have them."""
    leaves = [np.asarray(_whole(x), np.float64) for x in jax.tree.leaves(tree)]
    return [np.nan_to_num(leaf, nan=-1.0).tolist() for leaf in leaves]


def _whole(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    return jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x)


def algorithm(name: str):
    """An algorithm on the linear model, by plain gradient descent."""
    return algorithms()[name].make(task, whole_batches)


def after_rounds(name: str, case: str, layout=AT_ONCE) -> tuple:
    """Progress and report after some rounds, and the round function."""
    given, conditions = problem(COUNTS), CONDITIONS[case]
    step = rounds.make_round(algorithm(name), conditions=conditions, layout=layout)
    progress = start(algorithm(name), given, conditions)
    for index in range(ROUNDS):
        args = given.shared, progress, given.examples, jax.random.key(0)
        progress, report = step(*args, index)
    return progress, report, step


def rounds_on_devices() -> dict:
    """Rounds on the mesh: results, compilations, and what stays sharded."""
    results = {}
    for name in NAMES:
        for case in CONDITIONS:
            progress, report, step = after_rounds(name, case, Layout(1, make_mesh()))
            specs = {str(x.sharding.spec) for x in jax.tree.leaves(progress[1:])}
            server = jax.tree.leaves(progress.server)
            results[f"{name} {case}"] = {
                "values": values((progress, report)),
                "compiled": [fn._cache_size() for fn in step.programs],
                "split": sorted(specs),
                "whole": all(x.sharding.is_fully_replicated for x in server),
            }
    return results


def streamed(name: str, layout=AT_ONCE) -> list:
    """The server's and all clients' states after streamed rounds."""
    given, conditions = problem(COUNTS), CONDITIONS["ragged"]
    step = rounds.make_round(algorithm(name), conditions=conditions, layout=layout)
    begin = start_on_host(
        algorithm(name),
        given.shared,
        given.adapter,
        given.examples,
        jax.random.key(0),
        conditions=conditions,
    )
    args = step, given.shared, given.examples, begin, jax.random.key(0)
    *_, last = rounds.iterate(*args, last=ROUNDS)
    return values((last.progress.server, begin.states.take(np.arange(CLIENTS)).state))


def streamed_on_devices() -> dict:
    """Streamed rounds on the mesh."""
    return {name: streamed(name, Layout(1, make_mesh())) for name in NAMES}


def between_hosts() -> dict:
    """What hosts say of each other, and rounds that go on from a file of the first."""
    given, layout = problem(COUNTS), Layout(1, make_mesh())
    hosts.check_hosts(base=given.shared.base, rounds=ROUNDS, key=jax.random.key(0))
    try:
        hosts.check_hosts(rounds=ROUNDS + jax.process_index())
        difference = ""
    except hosts.HostsDiffer as error:
        difference = str(error)
    step = rounds.make_round(algorithm("scaffold"), layout=layout)
    args = step, given.shared, given.examples
    begin, key = start(algorithm("scaffold"), given), jax.random.key(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rounds.npz"
        for at, progress, _ in rounds.iterate(*args, begin, key, last=ROUNDS):
            if at < ROUNDS - 1:
                hosts.save(path, at + 1, progress)
        whole = values(progress)
        done, kept = hosts.restore(path, start(algorithm("scaffold"), given))
    *_, last = rounds.iterate(*args, kept, key, first=done, last=ROUNDS)
    resumed = values(last.progress)
    return {"differ": difference, "done": done, "same": resumed == whole}


def alone() -> dict:
    """Clients that train for themselves, on the mesh and on one device."""
    given, results = problem(COUNTS), {}
    for place, layout in {"mesh": Layout(1, make_mesh()), "one": Layout(1)}.items():
        step = rounds.make_round(algorithm("local"), layout=layout)
        begin = start(algorithm("local"), given)
        for index in range(ROUNDS):
            args = given.shared, begin, given.examples, jax.random.key(0)
            begin, _ = step(*args, index)
        results[place] = values(begin.states)
    return results


def collectives() -> dict:
    """Collectives in a round of all clients, and in the clients' own part of it."""
    layout, given = Layout(None, make_mesh()), problem(COUNTS)
    step = rounds.make_round(algorithm("fedsa"), layout=layout)
    begin = start(algorithm("fedsa"), given)
    args = given.shared, begin, given.examples, jax.random.key(0)
    placed = rounds._placed(layout.mesh, *args)
    whole = step.programs[0].lower(*placed, np.int32(0)).compile().as_text()
    clients = jax.jit(over_clients(lambda x: (x @ x.T).sum(), layout=layout))
    alone = clients.lower(np.ones((CLIENTS, 3, 3))).compile().as_text()
    return {"round": _COLLECTIVE.findall(whole), "client": _COLLECTIVE.findall(alone)}


def base_split() -> dict:
    """A base over two devices of the axis `model`: as good, and half as large."""
    mesh, rng = make_mesh(model=2), np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    base, inputs = {"w": normal(4, 2), "odd": normal(3)}, normal(CLIENTS, 2, 4)
    split = split_base(base, mesh)
    outputs = lambda base, x: x @ base["w"]
    mapped = over_clients(outputs, in_axes=(None, 0), layout=Layout(2, mesh))
    part = lambda x: list(x.addressable_shards[0].data.shape)
    return {
        "computed": values(jax.jit(mapped)(split, inputs))[0],
        "expected": values(inputs @ base["w"])[0],
        "shards": {name: part(x) for name, x in split.items()},
    }


CHECKS = {
    "rounds": rounds_on_devices,
    "streamed": streamed_on_devices,
    "hosts": between_hosts,
    "alone": alone,
    "collectives": collectives,
    "base": base_split,
}


def main(checks: str, address: str | None = None, process: str = "0") -> None:
    """Print what checks give; only process 0 if there are two."""
    count = 4 if address else 8
    here = f" --xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + here
    with hosts.joined(address, 2, int(process)) if address else nullcontext():
        results = {check: CHECKS[check]() for check in checks.split(",")}
    if process == "0":
        print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
