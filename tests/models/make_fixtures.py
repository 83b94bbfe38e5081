"""Tiny random models of Hugging Face's, with what they compute: run by hand.

    pip install torch transformers
    python tests/models/make_fixtures.py

Each folder has the checkpoint as `save_pretrained` writes it, and `golden.npz`.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

FIXTURES = Path(__file__).parent / "fixtures"
LENGTH, NEW = 24, 12
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 60,
    "pad_token_id": 0,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def language(name: str, model, *, shard: str = "1GB") -> None:
    """A causal model, its logits, hidden states, frequencies and generation."""
    grow(model)
    tokens = torch.randint(1, 60, (3, LENGTH))
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True)
    prompt = tokens[:1, :9]
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    write(
        name,
        model,
        shard,
        tokens=tokens,
        logits=out.logits,
        hidden=torch.stack(out.hidden_states),
        frequencies=model.model.rotary_emb.inv_freq,
        generated=made,
    )


def grow(model) -> None:
    """Larger weights, and biases and norms that do something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            noise = 0.2 * torch.randn_like(x)
            x.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    model.eval()


def image(name: str, model, call, shard: str = "1GB") -> None:
    """An image model and its outputs."""
    grow(model)
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        out = call(model, images)
    write(name, model, shard, images=images.permute(0, 2, 3, 1), **out)


def write(name, model, shard, **arrays) -> None:
    """The checkpoint, and the arrays."""
    folder = FIXTURES / name
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        folder / "golden.npz", **{k: np.asarray(v.detach()) for k, v in arrays.items()}
    )


def main() -> None:
    """All fixtures."""
    llama = LlamaConfig(**SIZES, rope_parameters=ROPE, tie_word_embeddings=True)
    language("llama", LlamaForCausalLM(llama), shard="20KB")
    untied = LlamaConfig(**SIZES, tie_word_embeddings=False)
    language("llama-untied", LlamaForCausalLM(untied))
    language("qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)))
    qwen3 = Qwen3Config(**SIZES, head_dim=12, tie_word_embeddings=True)
    language("qwen3", Qwen3ForCausalLM(qwen3))
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 4,
    }
    vit = ViTForImageClassification(ViTConfig(**sizes, num_labels=5))
    image(
        "vit",
        vit,
        lambda m, x: (
            lambda o: {"logits": o.logits, "hidden": torch.stack(o.hidden_states)}
        )(m(x, output_hidden_states=True)),
    )
    headless = ViTModel(ViTConfig(**sizes))
    image("vit-headless", headless, lambda m, x: {"features": m(x).last_hidden_state})


if __name__ == "__main__":
    main()
