"""Check an installed wheel in an environment with nothing but what it declares.

python -P tests/check_wheel.py        (what `make wheel` runs, from an empty folder)
"""

import importlib.util
import subprocess
import sys

_HEAVY = (
    "tensorflow_datasets",
    "matplotlib",
    "tokenizers",
    "sklearn",
    "tyro",
    "jinja2",
)
_MOST_SECONDS = 2.0
_BEGIN = "import time, sys; import jax, flax.linen, optax; began = time.monotonic(); "
_END = "print(time.monotonic() - began); print(*sys.modules)"
_SNIPPET = """
import jax.numpy as jnp, numpy as np
from potara_jax import merging
one, two = ({"m": {"a": jnp.ones((4, 2)) * x, "b": jnp.ones((2, 3))}} for x in (1, 3))
merged = merging.merge([one, two], [0.5, 0.5])["m"]
np.testing.assert_allclose(merged["a"] @ merged["b"], np.full((4, 3), 4.0))
"""


def main() -> None:
    """Raise `AssertionError` for what is not as it should be."""
    assert importlib.util.find_spec("potara_jax.experiments"), "no experiments"
    assert not importlib.util.find_spec("experiments"), "a second top-level package"
    for name in _HEAVY:
        assert not importlib.util.find_spec(name), f"{name} came with the base package"
    run = lambda code: (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )
    seconds, modules = run(f"{_BEGIN}import potara_jax.merging; {_END}").splitlines()
    assert float(seconds) < _MOST_SECONDS, f"merging takes {seconds} s to import"
    assert not set(_HEAVY) & set(modules.split())
    run(_SNIPPET)
    print(f"wheel: merging imports in {float(seconds):.2f} s beyond JAX and Flax")


if __name__ == "__main__":
    main()
