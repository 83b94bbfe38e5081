"""What hosts agree on, what they keep, and their last words."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax.clients import hosts
from potara_jax.clients.training import Train
from potara_jax.experiments import digits
from potara_jax.jobs.run import check
from potara_jax.jobs.table import Table
from tests.helpers_federated import assert_equal

EXAMPLE = Path(__file__).parents[2] / "examples" / "federate_on_hosts.py"
TRAIN = Train(optax.sgd(0.1), steps=3, batch_size=4)


def test_a_description_has_software_settings_arrays_and_keys():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = {"train": TRAIN, "base": {"w": x, "half": jnp.ones(2, jnp.bfloat16)}}
    values |= {"key": jax.random.key(0), "rounds": (1, None), "loss": optax.sgd}
    lines = hosts.described(values)
    assert lines["jax"] == jax.__version__
    assert lines["train.steps"] == "3" and lines["rounds.1"] == "None"
    assert re.fullmatch(r"float32\[2, 3\] [0-9a-f]{8}", lines["base.w"])
    assert lines["base.half"].startswith("bfloat16[2] ")
    assert lines["loss"].startswith("optax.")
    assert not [line for line in lines.values() if "0x" in line]
    others = hosts.described(values | {"key": jax.random.key(1), "base": {"w": x + 1}})
    differ = {name for name in lines if lines[name] != others.get(name)}
    assert differ == {"key", "base.w", "base.half"}


def test_a_difference_names_the_thing_and_the_hosts():
    each = [{"jax": "0.9", "a": "1"}, {"jax": "0.10", "a": "1"}, {"jax": "0.9"}]
    line = hosts.difference(each)
    assert "jax is 0.9 on hosts 0 and 2, 0.10 on host 1; " in line
    assert "a is 1 on hosts 0 and 1, missing on host 2: give" in line


def test_a_long_difference_is_cut():
    each = [dict.fromkeys("abcdef", value) for value in "12"]
    assert "d is 1 on host 0, 2 on host 1; and 2 more: give" in hosts.difference(each)


def test_one_host_agrees_with_itself():
    hosts.check_hosts(rounds=3)


def test_what_is_saved_is_restored_to_the_bit(tmp_path):
    path = tmp_path / "out" / "rounds.npz"
    tree = {"w": np.arange(6.0).reshape(2, 3), "half": jnp.ones(2, jnp.bfloat16)}
    assert hosts.restore(path, tree) == (0, tree)
    hosts.save(path, 3, tree)
    hosts.save(path, 4, jax.tree.map(lambda x: x + 1, tree))
    number, restored = hosts.restore(path, tree)
    assert number == 4 and restored["half"].dtype == jnp.bfloat16
    assert_equal(restored, jax.tree.map(lambda x: x + 1, tree))
    assert [file.name for file in path.parent.iterdir()] == ["rounds.npz"]
    with pytest.raises(ValueError, match="is of other settings: remove it"):
        hosts.restore(path, tree | {"w": np.zeros((2, 4))})


def test_a_whole_run_is_refused_on_several_hosts(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="one host, and JAX has 2 processes: leave"):
        check(digits.EXPERIMENT, Table())


SCRIPT = """
import os, sys
from potara_jax.clients import joined
with joined(sys.argv[1], 1, 0):
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def test_a_host_that_is_killed_has_last_words():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SCRIPT, address, str(int(signal.SIGKILL))]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stderr.splitlines()[-1].startswith("potara: host 0 of 1 has ended ear")


def test_the_example_goes_on_to_the_same_bytes(tmp_path):
    spec = importlib.util.spec_from_file_location("federate_on_hosts", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    run = lambda folder, rounds: example.main(folder, clients=4, rounds=rounds)
    run(tmp_path / "twice", 1)
    assert_equal(run(tmp_path / "twice", 3), run(tmp_path / "once", 3))
    files = [tmp_path / name / "rounds.npz" for name in ("twice", "once")]
    assert files[0].read_bytes() == files[1].read_bytes()
