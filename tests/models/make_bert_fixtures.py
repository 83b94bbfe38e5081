"""Tiny random BERTs of Hugging Face's, with what they compute: run by hand.

    pip install torch transformers
    python -m tests.models.make_bert_fixtures

Each folder has the checkpoint as `save_pretrained` writes it, and `golden.npz`: for two
lengths, padded pairs of sentences, every hidden state, and the logits. Made with
transformers 5.17.0.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.models.make_fixtures import FIXTURES, grow, write

LENGTHS = 8, 20
VOCABULARY, CLASSES = 53, 3
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
DISTILLED = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 24,
}


def sentences(length: int, pad: int, generator: torch.Generator):
    """Pairs of sentences of three lengths, and where the second one starts."""
    tokens = torch.randint(4, VOCABULARY, (3, length), generator=generator)
    count = torch.tensor([length, length - 3, 4])
    first = torch.tensor([length // 2, length - 3, 2])
    places = torch.arange(length)
    tokens = torch.where(places < count[:, None], tokens, pad)
    return tokens, count, first


def made(name: str, model, *, pad: int, types: bool) -> None:
    """A model and its outputs at all lengths."""
    grow(model)
    generator = torch.Generator().manual_seed(1)
    arrays = {}
    for length in LENGTHS:
        tokens, count, first = sentences(length, pad, generator)
        places = torch.arange(length)
        inputs = {
            "input_ids": tokens,
            "attention_mask": (places < count[:, None]).long(),
        }
        if types:
            second = (places >= first[:, None]) & (places < count[:, None])
            inputs["token_type_ids"] = second.long()
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
        arrays |= {
            f"tokens_{length}": tokens,
            f"count_{length}": count,
            f"first_{length}": first,
            f"hidden_{length}": torch.stack(out.hidden_states),
        }
        if "logits" in out:
            arrays[f"logits_{length}"] = out.logits
    write(name, model, "1GB", **arrays)


def with_older_names(folder: Path) -> None:
    """Rename the tensors of norms as in files from TensorFlow's checkpoints."""
    path = folder / "model.safetensors"
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, x in load_file(path).items():
        for newer, before in older.items():
            name = name.replace(newer, before)
        tensors[name] = x
    tensors["embeddings.position_ids"] = torch.arange(24)[None]
    save_file(tensors, path, metadata={"format": "pt"})


def main() -> None:
    """All fixtures."""
    labels = {"num_labels": CLASSES}
    bert = BertForSequenceClassification(BertConfig(**SIZES, **labels))
    made("bert", bert, pad=0, types=True)
    made("bert-older", BertModel(BertConfig(**SIZES)), pad=0, types=True)
    with_older_names(FIXTURES / "bert-older")
    sizes = SIZES | {"type_vocab_size": 1, "pad_token_id": 1}
    roberta = RobertaForSequenceClassification(RobertaConfig(**sizes, **labels))
    made("roberta", roberta, pad=1, types=False)
    made("xlm-roberta", XLMRobertaModel(XLMRobertaConfig(**sizes)), pad=1, types=False)
    config = DistilBertConfig(**DISTILLED, **labels)
    distilbert = DistilBertForSequenceClassification(config)
    made("distilbert", distilbert, pad=0, types=False)


if __name__ == "__main__":
    main()
