"""The same client in PyTorch with Hugging Face transformers and PEFT, in a loop.

Needs `benchmarks/requirements.txt`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as load
from transformers import ViTConfig, ViTForImageClassification


class Sizes(NamedTuple):
    """Of a Vision Transformer and of its images."""

    width: int = 64
    depth: int = 4
    heads: int = 4
    patch: int = 2
    side: int = 8
    colours: int = 1
    classes: int = 10


DIGITS = Sizes()


def looping(
    clients: int,
    *,
    steps: int,
    batch: int,
    rank: int,
    sizes: Sizes = DIGITS,
    device: str = "cpu",
    dtype: str = "float32",
) -> Callable[[], list[dict[str, torch.Tensor]]]:
    """A function that trains every client from the same adapter, one after the other.

    Each with a fresh AdamW, on random images. The factors are in float32.
    """
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        image_size=sizes.side,
        patch_size=sizes.patch,
        num_channels=sizes.colours,
        num_labels=sizes.classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_targets(config))
    base = ViTForImageClassification(config).to(device, getattr(torch, dtype))
    model = get_peft_model(base, lora)
    model.train()
    first = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    shape = 512, sizes.colours, sizes.side, sizes.side
    images = torch.rand(shape, device=device, dtype=getattr(torch, dtype))
    labels = torch.arange(512, device=device) % sizes.classes
    trained = [p for p in model.parameters() if p.requires_grad]

    def one(index) -> dict:
        load(model, first)
        optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=1e-4)
        for rows in index:
            optimizer.zero_grad()
            logits = model(pixel_values=images[rows]).logits
            torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
        return {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}

    index = torch.randint(0, 512, (clients, steps, batch), device=device)

    def run() -> list[dict[str, torch.Tensor]]:
        adapters = [one(rows) for rows in index]
        if device == "cuda":
            torch.cuda.synchronize()
        return adapters

    return run


def _targets(config) -> list[str]:
    """The names of query and value, which differ between versions."""
    names = [n for n, _ in ViTForImageClassification(config).named_modules()]
    ends = {name.rsplit(".", 1)[-1] for name in names}
    return ["query", "value"] if "query" in ends else ["q_proj", "v_proj"]
