"""Versions of the software that a run is made with."""

from __future__ import annotations

import importlib.metadata
import platform

import jax

_PACKAGES = (
    *("potara_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    "numpy",
)


def versions() -> dict[str, str]:
    """Software and device of this process."""
    packages = {name: version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    machine = f"{jax.device_count()} x {device.platform} {device.device_kind}"
    return {"python": platform.python_version(), **packages, "device": machine}


def version(package: str) -> str:
    """A package's version, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
