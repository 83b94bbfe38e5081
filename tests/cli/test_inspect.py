"""`potara inspect`: what an adapter holds, as its user has it."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from potara_jax.adapters import peft
from potara_jax.cli.inspect import Inspect, effective_rank, inspect, singular_values
from potara_jax.cli.main import main
from tests.helpers import dense

FIXTURES = Path(__file__).parents[1] / "adapters" / "fixtures" / "peft"
FEDERATED = FIXTURES / "federated"


def inspected(folder):
    console = Console(width=100, file=io.StringIO())
    inspect(Inspect(folder), console)
    return console.file.getvalue()


def test_inspect_shows_a_row_for_every_kind_of_module():
    text = inspected(FIXTURES / "patterns")
    assert "base model: tiny/llama" in text
    assert "model.layers.*" in text
    row = next(line for line in text.splitlines() if "self_attn.q_proj" in line)
    assert row.split()[1:10] == ["2", "16", "16", "2", "to", "4", "2", "to", "4"]
    assert "parameters: 624" in text
    assert "ignores rank_pattern and alpha_pattern" in text


def test_inspect_says_who_can_load_it(tmp_path):
    assert "vLLM: loads it as it is" in inspected(FEDERATED)
    text = inspected(FIXTURES / "classifier")
    assert "trained whole: score (weight (3, 16))" in text
    assert "vLLM: does not load it: modules_to_save (score)" in text


def test_inspect_refuses_what_it_cannot_read(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"potara: {tmp_path} holds no")


def test_singular_values_and_the_effective_rank():
    entry = peft.read(FEDERATED).adapter["model.layers.0.self_attn.q_proj"]
    sigma = singular_values(entry)
    expected = np.linalg.svd(dense(entry), compute_uv=False)[:4]
    np.testing.assert_allclose(sigma, expected, rtol=1e-10)
    assert effective_rank(np.ones(3)) == pytest.approx(3)
    assert effective_rank(np.array([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(2)) == 0


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (16, "loads it as it is\n"),
        (24, "--max-lora-rank 32\n"),
        (300, "--max-lora-rank 320\n"),
        (600, "rank 600 is above 512; truncate it"),
    ],
)
def test_vllms_rank_is_one_that_it_knows(tmp_path, rank, said):
    entry = {"a": np.ones((700, rank), "f4"), "b": np.ones((rank, 700), "f4")}
    peft.write(tmp_path / "adapter", {"model.layers.0.q_proj": entry})
    assert said in inspected(tmp_path / "adapter")
