"""Memory of the device and of the process, with and without an accelerator."""

import jax
import numpy as np
import pytest

from potara_jax import memory
from potara_jax.reports.formats import made_with

STATISTICS = {"bytes_limit": 1000, "bytes_in_use": 400, "peak_bytes_in_use": 700}


class Accelerator:
    def memory_stats(self):
        return STATISTICS


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator()])


def test_of_an_accelerator(accelerator):
    assert memory.of_device() == 1000
    assert memory.free_on_device() == 540  # 0.9 * (1000 - 400)
    assert memory.peak()["device"] == 700


def test_a_host_is_the_device_where_there_is_no_accelerator():
    assert "device" not in memory.peak()
    assert memory.of_device() == 4 * memory.free_on_device()
    assert memory.of_process() < memory.of_device()


def test_the_most_that_was_used_stays_when_it_is_used_no_more():
    before = memory.of_process()
    numbers = np.ones(40_000_000)
    used = memory.of_process()
    assert used - before > 0.9 * numbers.nbytes
    del numbers
    assert memory.peak()["process"] > 0.9 * used


def test_reports_name_it_beside_the_versions():
    results = {"versions": {"jax": "1"}, "memory": {"process": 1.2e9, "device": 3e10}}
    assert made_with(results) == {
        "jax": "1",
        "memory of the process": "1.2 GB",
        "memory of the device": "30 GB",
    }
    assert made_with({"versions": {"jax": "1"}}) == {"jax": "1"}
