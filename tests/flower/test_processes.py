"""A real SuperLink and real SuperNodes, with TLS and authentication."""

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("flwr", exc_type=ImportError)

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower" / "deploy.py"

processes = pytest.mark.skipif(
    "FLOWER_PROCESSES" not in os.environ, reason="takes ten minutes"
)


def example():
    spec = importlib.util.spec_from_file_location("deploy", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@processes
def test_a_round_goes_on_without_a_node_that_is_killed(tmp_path):
    deploy = example()
    deploy.prepare(tmp_path)
    deploy.credentials(tmp_path)
    config = "rounds=4 local-rounds=1 timeout=90"
    lines = []
    with deploy.deployed(tmp_path) as nodes, deploy.run(tmp_path, config) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
            if "[ROUND 2/4]" in line:
                deploy.kill(nodes[-1])
                print("--- the last node is killed", flush=True)
    text = "".join(lines)
    assert "client 3 is left out" in text and "client 7 is left out" in text
    arrived = [line for line in lines if "'cohort': 8, 'arrived': " in line]
    assert ["'arrived': 6" in line for line in arrived] == [False, True, True, True]
    scores = json.loads((tmp_path / "digits.json").read_text())
    assert sorted(map(int, scores)) == [0, 1, 2, 4, 5, 6]


def kill_server_app(out):
    """Kill the process of the run's `ServerApp`, by what it was started with."""
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
            mine = str(out).encode() in (folder / "environ").read_bytes()
        except OSError:  # no process, or one that has ended
            continue
        if mine and b"flwr-serverapp" in command:
            os.kill(int(folder.name), signal.SIGKILL)


@processes
def test_a_server_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    deploy = example()
    deploy.prepare(tmp_path)
    deploy.credentials(tmp_path)
    config = 'algorithm="scaffold" rounds=3 local-rounds=1 timeout=120'
    lines, scores = [], []
    with deploy.deployed(tmp_path):
        for killed in (True, False, False):
            with deploy.run(tmp_path, config) as process:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    lines.append(line)
                    if killed and "[ROUND 2/3]" in line:
                        kill_server_app(tmp_path)
            if not killed:
                scores.append((tmp_path / "digits.json").read_bytes())
                shutil.rmtree(tmp_path / "kept")  # the last one begins anew
    assert sum("The federation goes on after round 1" in line for line in lines) == 1
    assert scores[0] == scores[1]
