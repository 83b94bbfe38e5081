"""How the tests run: compiled quickly, and those that take long first."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Many small programs, each run a few times: most of the time goes into compilation.
# JAX reads these when it is imported, hence not here; an unknown one ends the process.
_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS))
_COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
gc.set_threshold(50_000, 50, 50)  # tracing makes many objects, and little garbage


@pytest.fixture(autouse=True, scope="module")
def few_compiled():
    """As every phase does, since tests compile a lot without any."""
    yield
    from potara_jax.runs import compiled

    compiled.forget_many()


def pytest_collection_modifyitems(items):
    """The slow files first, so that no process idles at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
