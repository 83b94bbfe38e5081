"""The families of image models that checkpoints are read and written for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from potara_jax.models import dinov2, vit
from potara_jax.models.vit import ViTConfig
from potara_jax.models.weights import Table


class Family(NamedTuple):
    """Vision Transformers that Hugging Face stores alike.

    Attributes:
      table: where their parameters are stored.
      config_of: their configuration from a `config.json`, as `vit.config_of`.
      description_of: the `config.json` of a configuration, as `vit.description_of`.
    """

    table: Table
    config_of: Callable[..., ViTConfig]
    description_of: Callable[..., dict[str, Any]]

    def reading(
        self, config: ViTConfig, description: Mapping[str, Any], *, head: bool
    ) -> Table:
        """The table for a checkpoint's first layers, with or without its head."""
        unused = range(config.depth, description["num_hidden_layers"])
        table = self.table.without_layers(unused)
        ignored = () if head else ("classifier.*",)
        return table._replace(ignored=(*table.ignored, *ignored))


VIT = Family(vit.TABLE, vit.config_of, vit.description_of)
DINOV2 = Family(dinov2.TABLE, dinov2.config_of, dinov2.description_of)

# By `model_type`. `config_of` says why the second of each is not supported.
_FAMILIES = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
}


def family_of(description: Mapping[str, Any]) -> Family:
    """The family of the model that a `config.json` describes.

    Raises:
      ValueError: it is none of them.
    """
    kind = description.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"model_type is {kind!r}: it must be vit or dinov2")
    return _FAMILIES[kind]
