"""Clients over eight devices, and over two processes of four, on the host."""

import functools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from potara_jax.clients.axis import Layout
from potara_jax.clients.mesh import make_mesh
from tests import on_devices

pytestmark = pytest.mark.slow

# Clients of their own are computed one by one in all of them: the same program.
ONE_BY_ONE = Layout(1)
BOTH = ("rounds", "streamed", "hosts")  # what two processes are also asked
ON_ITS_OWN = {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}


def begin(*words) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.on_devices", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=os.environ | ON_ITS_OWN, stdout=pipe, stderr=pipe, text=True
    )


def ended(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return out


@functools.cache
def eight_devices() -> dict:
    return json.loads(ended(begin(",".join(on_devices.CHECKS))).splitlines()[-1])


@functools.cache
def two_processes() -> dict:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [begin(",".join(BOTH), address, str(i)) for i in (0, 1)]
    first, _ = [ended(process) for process in processes]
    return json.loads(first.splitlines()[-1])


def on_eight_devices(check: str) -> dict:
    return eight_devices()[check]


def on_two_processes(check: str) -> dict:
    return two_processes()[check]


@functools.cache
def on_one_device(name: str, case: str) -> list:
    *found, _ = on_devices.after_rounds(name, case, ONE_BY_ONE)
    return on_devices.values(found)


CASES = [
    f"{name} {case}" for name in on_devices.NAMES for case in on_devices.CONDITIONS
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", [on_eight_devices, on_two_processes])
def test_rounds_are_those_of_one_device(where, case):
    found = where("rounds")[case]
    for mine, theirs in zip(on_one_device(*case.split()), found["values"], strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", [on_eight_devices, on_two_processes])
def test_rounds_compile_once_and_states_stay_split(where, case):
    found = where("rounds")[case]
    turns = 2 if "rolora" in case else 1
    assert found["compiled"] == [1] * turns
    assert found["split"] == ([] if turns == 2 else ["P('clients',)"])
    assert found["whole"]


@pytest.mark.parametrize("name", on_devices.NAMES)
@pytest.mark.parametrize("where", [on_eight_devices, on_two_processes])
def test_streamed_rounds_are_those_of_one_device(where, name):
    found, expected = where("streamed")[name], on_devices.streamed(name, ONE_BY_ONE)
    for mine, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("where", [on_eight_devices, on_two_processes])
def test_rounds_go_on_from_what_the_first_host_has_kept(where):
    result = where("hosts")
    assert result["done"] == on_devices.ROUNDS - 1
    assert result["same"]


def test_hosts_say_where_they_differ():
    assert on_eight_devices("hosts")["differ"] == ""  # one host
    line = "hosts differ: rounds is 3 on host 0, 4 on host 1: give all of them the same"
    assert on_two_processes("hosts")["differ"] == line


def test_clients_of_their_own_are_the_same_to_the_bit():
    found = on_eight_devices("alone")
    assert found["mesh"] == found["one"]


def test_what_clients_do_needs_no_collective():
    assert on_eight_devices("collectives")["client"] == []


def test_a_round_reduces_each_factor_once_and_gathers_its_report_alone():
    found = on_eight_devices("collectives")["round"]
    fields = ("losses", "finite", "arrived", "bytes down or up")
    assert found.count("all-reduce") <= 2  # the mean of `a`, and the weights' sum
    assert found.count("all-gather") <= len(fields)
    assert set(found) == {"all-reduce", "all-gather"}


def test_a_base_may_be_split():
    found = on_eight_devices("base")
    np.testing.assert_allclose(found["computed"], found["expected"], rtol=1e-5)
    assert found["shards"] == {"w": [2, 2], "odd": [3]}


def test_a_mesh_needs_a_divisor():
    with pytest.raises(ValueError, match="3 of 1 devices: choose a divisor"):
        make_mesh(model=3)
