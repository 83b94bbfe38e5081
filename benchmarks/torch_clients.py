"""The same client in PyTorch with Hugging Face transformers and PEFT, in a loop.

Needs `benchmarks/requirements.txt`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as load
from transformers import ViTConfig, ViTForImageClassification


def looping(clients: int, *, steps: int, batch: int, rank: int) -> Callable:
    """A function that trains every client from the same adapter, one after the other.

    Each with a fresh AdamW, on the digits' ViT with random images.
    """
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_targets(config))
    model = get_peft_model(ViTForImageClassification(config), lora)
    model.train()
    first = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    images, labels = torch.rand(512, 1, 8, 8), torch.arange(512) % 10
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

    index = torch.randint(0, 512, (clients, steps, batch))
    return lambda: [one(rows) for rows in index]


def _targets(config) -> list[str]:
    """The names of query and value, which differ between versions."""
    names = [n for n, _ in ViTForImageClassification(config).named_modules()]
    ends = {name.rsplit(".", 1)[-1] for name in names}
    return ["query", "value"] if "query" in ends else ["q_proj", "v_proj"]
