"""LoRA adapters as pytrees, on any Flax model, Linen or NNX.

`find_sites`, `init` and `bind` make and apply an adapter; `fold` puts one into the
base; `variables` is the base of an NNX model; `from_nnx_lora` and `to_nnx_lora` convert
adapters of `flax.nnx.LoRA`, Qwix and Tunix. The modules have more: `algebra` exact
algebra of low-rank deltas, `peft` the adapter folders of Hugging Face PEFT,
`precision` a base in fewer bits.
"""

from potara_jax.adapters.lora import (
    Adapter,
    Entry,
    Params,
    Site,
    bind,
    find_sites,
    fold,
    init,
    is_factors,
    trained_modules,
)
from potara_jax.adapters.nnx_lora import from_nnx_lora, to_nnx_lora
from potara_jax.adapters.of_nnx import variables

__all__ = [
    "Adapter",
    "Entry",
    "Params",
    "Site",
    "bind",
    "find_sites",
    "fold",
    "from_nnx_lora",
    "init",
    "is_factors",
    "to_nnx_lora",
    "trained_modules",
    "variables",
]
