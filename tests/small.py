"""Tiny models and data sets in the formats of the real ones, for the small jobs.

    python -m tests.small FOLDER

In the folder: `sets`, prepared by tensorflow-datasets from files as their authors
publish them; `llama`, `vit`, `bert` and `roberta`, Hugging Face folders with random
weights; `sentences`, files of texts and labels.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, processors

from potara_jax.data import catalogue, glue, prompts
from potara_jax.models import bert, llama, vit, weights
from tests.data import raw_sets

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
_BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}
_ROBERTA = _BERT | {
    "model_type": "roberta",
    "vocab_size": 264,
    "num_hidden_layers": 1,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
_GLUE = ("cola", "mrpc")  # one of sentences, and one of pairs
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "dull"]
_WORDS += ["fine", "who", "where", "why", "is"]
# The labels of a task, and a word of each.
_SENTENCES = {
    "sst2": {"0": "bad", "1": "good"},
    "subj": {"0": "plot", "1": "fine"},
    "trec": {"0": "who", "1": "where", "2": "why"},
}


def sets(folder: Path, examples: int) -> None:
    """Write all data sets of the catalogue, with a number of examples per split."""
    sources = {**prompts.COMMONSENSE, **prompts.FLAN}
    splits = {source.name: source.train for source in sources.values()}
    splits |= {glue.TASKS[name].data_set: "train" for name in _GLUE}
    raw = {n: raw_sets.TEXTS[n](folder / "raw" / n, examples) for n in splits}
    path, _ = raw_sets.cifar(folder / "raw" / "cifar", 10 * examples, classes=10)
    for name, files in (raw | {"cifar100": path}).items():
        with pytest.MonkeyPatch.context() as patch:
            raw_sets.downloads(patch, files)
            catalogue.records(name, splits.get(name, "train"), folder / "sets")


def models(folder: Path) -> None:
    """Write a Llama, a ViT, a BERT and a RoBERTa."""
    language_model(folder / "llama")
    vision_model(folder / "vit")
    encoder(folder / "bert")
    roberta(folder / "roberta")


def language_model(folder: Path) -> None:
    """Write a Llama of bytes."""
    config, text = llama.config_of(_LLAMA), llama.Text(*(jnp.zeros((1, 4), int),) * 2)
    params = jax.jit(llama.Llama(config).init)(jax.random.key(0), text)["params"]
    weights.save(folder, params, llama.TABLE, _LLAMA)
    _bytes_tokenizer("<begin>", "<end>", "<pad>").save(str(folder / "tokenizer.json"))


def vision_model(folder: Path) -> None:
    """Write a ViT without a head."""
    config, image = vit.config_of(_VIT), jnp.zeros((1, 16, 16, 3))
    params = jax.jit(vit.ViT(config).init)(jax.random.key(0), image)["params"]
    body = {name: x for name, x in params.items() if name != "head"}
    weights.save(folder, body, vit.TABLE, _VIT)
    scaling = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaling))


def encoder(folder: Path) -> None:
    """Write a BERT without a head, and the vocabulary of its WordPiece tokenizer."""
    _encoder(folder, _BERT)
    (folder / "vocab.txt").write_text("\n".join(_WORDS) + "\n")


def roberta(folder: Path) -> None:
    """Write a RoBERTa without a head, and its byte-level tokenizer."""
    _encoder(folder, _ROBERTA)
    special = "<s>", "<pad>", "</s>", "<unk>"
    tokenizer = _bytes_tokenizer(*special, first=True)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _encoder(folder: Path, description: dict) -> None:
    model = bert.Bert(bert.config_of(description, pooling="mean"))
    tokens, count = jnp.zeros((1, 4), int), jnp.ones(1, int)
    init = jax.jit(model.init)
    params = init(jax.random.key(0), bert.Sentences(tokens, count))["params"]
    body = {name: x for name, x in params.items() if name != "head"}
    weights.save(folder, body, bert.table_of(model.config), description)


def sentences(folder: Path, number: int) -> None:
    """Write tasks of labelled sentences, of which one has two files, and another."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for task, labels in _SENTENCES.items():
        lines = []
        for n in range(number):
            label = str(n % len(labels))
            words = [labels[label], *rng.choice(_WORDS[4:], 4), f"{task}{n}"]
            text = " ".join(rng.permutation(words))
            lines.append(json.dumps({"text": text, "label": label}))
        parts = {"train": lines[:-6], "test": lines[-6:]}
        for split, mine in parts.items() if task == "sst2" else [("all", lines)]:
            path = folder / f"{task}.{split}.jsonl.gz"
            path.write_bytes(gzip.compress("\n".join(mine).encode()))
    other = {"query": "which?", "choices": ["a", "b"], "gold": 0}
    (folder / "choices.jsonl").write_text(json.dumps(other) + "\n")


def with_config(source: Path, target: Path, change: dict) -> Path:
    """Copy a model with other values in its `config.json`; `...` leaves one out."""
    folder = shutil.copytree(source, target)
    config = json.loads((folder / "config.json").read_text()) | change
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def _bytes_tokenizer(*special: str, first: bool = False) -> tokenizers.Tokenizer:
    """A token per byte, after or before the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*special, *alphabet] if first else alphabet
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special])
    return tokenizer


if __name__ == "__main__":
    sets(Path(sys.argv[1]), 30)
    models(Path(sys.argv[1]))
    sentences(Path(sys.argv[1]) / "sentences", 60)
