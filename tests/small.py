"""Tiny models and data sets in the formats of the real ones, for the small jobs.

    python -m tests.small FOLDER

In the folder: `sets`, prepared by tensorflow-datasets from files as their authors
publish them; `llama` and `vit`, Hugging Face folders with random weights.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers

from potara_jax.data import catalogue, prompts
from potara_jax.models import llama, vit, weights
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


def sets(folder: Path, examples: int) -> None:
    """Write all data sets of the catalogue, with a number of examples per split."""
    sources = {**prompts.COMMONSENSE, **prompts.FLAN}
    splits = {source.name: source.train for source in sources.values()}
    raw = {n: raw_sets.TEXTS[n](folder / "raw" / n, examples) for n in splits}
    path, _ = raw_sets.cifar(folder / "raw" / "cifar", 10 * examples, classes=10)
    for name, files in (raw | {"cifar100": path}).items():
        with pytest.MonkeyPatch.context() as patch:
            raw_sets.downloads(patch, files)
            catalogue.records(name, splits.get(name, "train"), folder / "sets")


def models(folder: Path) -> None:
    """Write a Llama of bytes, and a ViT without a head."""
    config, text = llama.config_of(_LLAMA), llama.Text(*(jnp.zeros((1, 4), int),) * 2)
    params = llama.Llama(config).init(jax.random.key(0), text)["params"]
    weights.save(folder / "llama", params, llama.TABLE, _LLAMA)
    _bytes_tokenizer().save(str(folder / "llama" / "tokenizer.json"))
    config, image = vit.config_of(_VIT), jnp.zeros((1, 16, 16, 3))
    params = vit.ViT(config).init(jax.random.key(0), image)["params"]
    body = {name: x for name, x in params.items() if name != "head"}
    weights.save(folder / "vit", body, vit.TABLE, _VIT)
    scaling = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(scaling))


def with_config(source: Path, target: Path, change: dict) -> Path:
    """Copy a model with other values in its `config.json`; `...` leaves one out."""
    folder = shutil.copytree(source, target)
    config = json.loads((folder / "config.json").read_text()) | change
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def _bytes_tokenizer() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<begin>", "<end>", "<pad>"])
    return tokenizer


if __name__ == "__main__":
    sets(Path(sys.argv[1]), 30)
    models(Path(sys.argv[1]))
