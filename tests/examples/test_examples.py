"""Every example runs, in small form, and does what it says."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

from potara_jax.adapters import peft

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PEFT = Path(__file__).parents[1] / "adapters" / "fixtures" / "peft"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_its_command(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/{path.name}" in text


def test_regression():
    result = example("regression").main(clients=3, rounds=1)
    methods = {row["method"]: row["mean"] for row in result.results["methods"]}
    assert methods["grid"] < 0  # a score is minus the loss


def test_csv_data(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(60, 2)), rng.integers(0, 2, (60, 2))]
    path = tmp_path / "wine.csv"
    table = np.concatenate(rows, axis=1)
    header = "alcohol,acid,class,region"
    np.savetxt(path, table, "%g", ",", header=header, comments="")
    result = example("csv_data").main(path, rounds=1)
    assert len(result.adapters["federated"]["hidden"]["a"]) == 2
    assert (tmp_path / "wine.csv-report" / "report.html").is_file()


def test_merging_peft_folders(tmp_path):
    kept = example("merge_peft_folders").main(
        PEFT / "federated", PEFT / "local", tmp_path / "out", ranks=(1, 2)
    )
    assert 0 < kept[1] < kept[2] <= 1
    assert peft.read(tmp_path / "out").adapter.keys()


def test_many_adapters(tmp_path):
    losses = example("many_adapters").main(tmp_path / "out", adapters=4, steps=40)
    assert losses[:, -1].mean() < losses[:, 0].mean()
    assert set(peft.read(tmp_path / "out").adapter) == {"first", "second"}


def test_a_model_of_ones_own():
    adapters, losses = example("own_model").main(clients=2, steps=40)
    assert set(adapters) == {"conv_0", "conv_1", "head"}
    assert losses[:, -1].mean() < losses[:, 0].mean()


def test_an_nnx_model():
    losses, logits = example("nnx_model").main(tasks=2, steps=40)
    assert losses[:, -1].mean() < losses[:, 0].mean()
    assert logits.shape == (48, 3)


def test_a_cnn_of_flaxs_tutorial():
    result = example("nnx_digits").main(clients=4, rounds=2, steps=40)
    means = {row["method"]: row["mean"] for row in result.results["methods"]}
    assert means["base"] < means["tempered_bayes"]
    assert set(result.adapters["uniform"]) == {"conv", "linear", "head"}


def test_two_hosts_train_half_of_the_adapters_each(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    here = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, FOLDER / "many_hosts.py", tmp_path, address, "2"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hosts = [subprocess.Popen([*command, str(i)], env=here, **pipe) for i in range(2)]
    outputs = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    said = [lines.splitlines()[-1] for lines, _ in outputs]
    assert said[0] == said[1] and said[0].endswith("on 4 devices")
    parts = [load_file(tmp_path / f"part-{i}.safetensors") for i in range(2)]
    assert [set(part) for part in parts] == [{"0", "16"}, {"32", "48"}]
    assert all(x.shape == (16, 4, 2) for part in parts for x in part.values())
