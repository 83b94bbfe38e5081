"""The same algorithms deployed with Flower: `pip install 'potara_jax[flower]'`.

`as_server_app` and `as_client_app` make the two apps of a federation that both know as
a `Deployment`. Both compute what a simulated round computes, by the same functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from potara_jax.flower.client import Node
from potara_jax.flower.deployment import Deployment, Personal

if TYPE_CHECKING:
    from potara_jax.flower.client_app import as_client_app
    from potara_jax.flower.server_app import Outcome, Rounds, as_server_app

__all__ = [
    "Deployment",
    "Node",
    "Outcome",
    "Personal",
    "Rounds",
    "as_client_app",
    "as_server_app",
]
_OF_FLOWER = {
    "as_client_app": "client_app",
    "as_server_app": "server_app",
    "Outcome": "server_app",
    "Rounds": "server_app",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_FLOWER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_OF_FLOWER[name]}")
    except ModuleNotFoundError as error:
        if error.name != "flwr":
            raise
        raise ImportError(
            f"{__name__}.{name} needs flwr: pip install 'potara_jax[flower]'"
        ) from error
    return getattr(module, name)
