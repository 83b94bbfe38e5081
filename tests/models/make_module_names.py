"""Make `fixtures/module_names.json`: what versions of transformers call linear layers.

    HF_HUB_OFFLINE=1 python -m tests.models.make_module_names

needs torch and transformers, and replaces the names of the major version that is
installed: run it once with each. Made with transformers 4.57.6 and 5.24.0. PEFT finds
an adapter's modules by these names.
"""

import json
from pathlib import Path

import torch
import transformers

FILE = Path(__file__).parent / "fixtures" / "module_names.json"
SIZES = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)
TEXT = SIZES | dict(vocab_size=24, num_key_value_heads=2)
DISTILLED = dict(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=24)
MODELS = {
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig(**SIZES)),
    "dinov2": (
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config(**SIZES),
    ),
    "dinov2-swiglu": (
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True),
    ),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**TEXT)),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**TEXT)),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**TEXT)),
    "bert": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**SIZES, vocab_size=24),
    ),
    "roberta": (
        transformers.RobertaForSequenceClassification,
        transformers.RobertaConfig(**SIZES, vocab_size=24),
    ),
    "xlm-roberta": (
        transformers.XLMRobertaForSequenceClassification,
        transformers.XLMRobertaConfig(**SIZES, vocab_size=24),
    ),
    "distilbert": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(**DISTILLED),
    ),
}


def main():
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    major = transformers.__version__.split(".")[0]
    known[major] = {name: linear_layers(*model) for name, model in MODELS.items()}
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def linear_layers(kind, config):
    modules = kind(config).named_modules()
    return sorted(name for name, x in modules if isinstance(x, torch.nn.Linear))


if __name__ == "__main__":
    main()
