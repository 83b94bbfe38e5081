"""Make `fixtures/peft`: adapters that PEFT wrote, and what PEFT computes with them.

    PYTHONHASHSEED=0 HF_HUB_OFFLINE=1 python -m tests.adapters.make_peft_fixtures

needs torch, transformers and peft; made with torch 2.13.0, transformers 5.23.0 and
peft 0.21.2. `versions.json` holds those of the last run. The tests need none of them.
(PEFT writes its targets as a set, in the order of the hashes.)

    base/                   a Llama of two layers with random weights
    <name>/                 an adapter, as `save_pretrained` leaves it
    references.safetensors  <name>/<module>        the dense delta `[K, D]`, float32
                            merged/<combination>/<module>  of add_weighted_adapter
                            tokens, logits/base, logits/<name>
"""

import json
import shutil
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

FOLDER = Path(__file__).parent / "fixtures" / "peft"
BASE = "tiny/llama"
ATTENTION = ["q_proj", "v_proj"]
WEIGHTS = [0.3, 0.7]
COMBINATIONS = ("cat", "svd", "linear", "ties", "dare_linear", "ties_svd")

SIZES = LlamaConfig(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    num_labels=3,
    pad_token_id=0,
    initializer_range=0.2,
    tie_word_embeddings=False,
)

ADAPTERS = {
    "federated": dict(r=4, lora_alpha=8, target_modules=ATTENTION),
    "local": dict(r=4, lora_alpha=8, target_modules=ATTENTION),
    "bfloat16": dict(r=2, lora_alpha=3, target_modules=ATTENTION),
    "float16": dict(r=2, lora_alpha=3, target_modules=ATTENTION),
    "regex": dict(r=2, lora_alpha=2, target_modules=r".*\.0\..*(q_proj|down_proj)"),
    "patterns": dict(
        r=4,
        lora_alpha=8,
        target_modules=[*ATTENTION, "up_proj"],
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 2, "up_proj": 3},
        alpha_pattern={"v_proj": 6, "^model.layers.0.mlp.up_proj": 1},
    ),
    "rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=ATTENTION),
    "classifier": dict(
        r=2, lora_alpha=4, target_modules=ATTENTION, task_type="SEQ_CLS"
    ),
    "classifier_local": dict(
        r=2, lora_alpha=4, target_modules=ATTENTION, task_type="SEQ_CLS"
    ),
    "dora": dict(r=2, lora_alpha=4, use_dora=True, target_modules=ATTENTION),
}


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    torch.manual_seed(0)
    base(LlamaForCausalLM).save_pretrained(FOLDER / "base")
    tokens = torch.randint(1, SIZES.vocab_size, (2, 6))
    references = {"tokens": tokens}
    references["logits/base"] = logits(base(LlamaForCausalLM), tokens)
    for number, (name, options) in enumerate(ADAPTERS.items()):
        model = make_adapter(name, options, seed=100 + number)
        if name != "dora":
            references |= deltas(model, "default", name)
            references[f"logits/{name}"] = logits(model, tokens)
    references |= combinations(["federated", "local"], WEIGHTS, "")
    references |= combinations(["federated", "federated"], [0.5, 0.5], "_equal")
    save_file(
        {name: value.contiguous() for name, value in references.items()},
        FOLDER / "references.safetensors",
    )
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


def base(kind):
    """The same random base every time; a classifier's head is the adapter's own."""
    torch.manual_seed(1)
    model = kind(SIZES).eval()
    model.config.name_or_path = BASE
    model.name_or_path = BASE
    return model


def make_adapter(name, options, seed):
    """An adapter of random factors, saved."""
    kind = LlamaForCausalLM
    if options.get("task_type") == "SEQ_CLS":
        kind = LlamaForSequenceClassification
    model = get_peft_model(base(kind), LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * drawn
            if name in ("bfloat16", "float16"):
                parameter.data = parameter.data.to(getattr(torch, name)).float()
    if name in ("bfloat16", "float16"):
        to_dtype(model, getattr(torch, name))
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink()
    return model.float()


def to_dtype(model, dtype):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def layers(model):
    return {
        path.removeprefix("base_model.model."): module
        for path, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def deltas(model, adapter, name):
    return {
        f"{name}/{path}": layer.get_delta_weight(adapter).detach()
        for path, layer in layers(model).items()
    }


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def combinations(names, weights, suffix):
    """The dense deltas of what `add_weighted_adapter` makes of two adapters."""
    actual = {}
    for combination in COMBINATIONS:
        model = PeftModel.from_pretrained(
            base(LlamaForCausalLM), FOLDER / names[0], adapter_name="one"
        )
        model.load_adapter(FOLDER / names[1], adapter_name="two")
        density = None if combination in ("cat", "svd", "linear") else 0.5
        torch.manual_seed(2)
        model.add_weighted_adapter(
            ["one", "two"], weights, "both", combination, density=density
        )
        actual |= deltas(model, "both", f"merged/{combination}{suffix}")
    return actual


if __name__ == "__main__":
    main()
