import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import accelerator_cases as cases

pytestmark = pytest.mark.slow

# What a bare machine with an accelerator lacks.
ABSENT = ("tyro", "tensorflow_datasets", "torch", "transformers", "peft")


def run(folder, *words):
    """The benchmark in a process that cannot import those packages."""
    absent = f"import sys; sys.modules |= dict.fromkeys({ABSENT}); "
    start = "from benchmarks.accelerator import main; sys.exit(main())"
    command = [sys.executable, "-c", absent + start, "--tiny", "--out", str(folder)]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [*command, *words], env=environment, capture_output=True, text=True
    )


def test_a_tiny_case_runs_with_few_packages_and_keeps_its_lines(tmp_path):
    output = run(tmp_path, "--cases", "llama", "profile")
    record = json.loads((tmp_path / "results.json").read_text())
    assert list(record["failed"]) == ["profile"], output.stderr  # it needs "vit" before
    assert output.returncode == 1
    assert {line["case"] for line in record["lines"]} == {"llama"}
    assert all(np.isfinite(line["ratio"]) for line in record["lines"])
    assert any("flash attention" in line["what"] for line in record["lines"])


def test_no_case_begins_after_the_time_given(tmp_path):
    output = run(tmp_path, "--cases", "merges", "--seconds", "-1")
    record = json.loads((tmp_path / "results.json").read_text())
    assert output.returncode == 1 and record["lines"] == []
    assert record["failed"]["merges"].startswith("left out")


def test_an_unknown_case_is_refused_with_the_known_ones(tmp_path):
    output = run(tmp_path, "--cases", "speed")
    assert output.returncode == 2 and "no case 'speed'" in output.stdout
    assert "parity" in output.stdout and not (tmp_path / "results.json").exists()


def test_the_error_is_that_of_all_arrays_and_a_nan_is_no_parity():
    reference = [np.array([3.0, 0.0]), np.array([4.0])]
    off = cases._relative_error([np.array([3.0, 0.0]), np.array([4.5])], reference)
    assert off == pytest.approx(0.1)
    broken = cases._relative_error([np.array([np.nan, 0]), reference[1]], reference)
    assert not broken <= 1e-3


def test_kernels_are_sorted_by_kind():
    kind = cases._kind
    assert kind("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_TNT") == "matrix products"
    assert kind("cudnn_generated_fort_native_sdpa_sm90_flash_bprop") == "attention"
    assert kind("loop_add_fusion_11") == "other fusions"
    assert kind("input_add_reduce_fusion_23") == "reductions"
