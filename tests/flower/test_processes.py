"""A real SuperLink and real SuperNodes, with TLS and authentication."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("flwr", exc_type=ImportError)

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower" / "deploy.py"


def example():
    spec = importlib.util.spec_from_file_location("deploy", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif("FLOWER_PROCESSES" not in os.environ, reason="takes ten minutes")
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
