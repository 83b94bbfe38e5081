"""Check with PEFT itself that it loads what `potara merge` writes.

    python -m tests.adapters.check_peft_loads

needs torch, transformers and peft, and the fixtures. Two adapters that PEFT wrote are
merged on the command line, loaded again by PEFT, and compared with the model whose
weights are mixed exactly: `W + sum_i w_i delta_i`, the deltas as PEFT computes them.

The largest differences of logits that were measured (the script fails above
`TOLERANCE`): 1.3e-06 for `federated + local` in float32, where the mixture is 4.1 from
the base; 1.0e-02 in bfloat16 and 1.3e-03 in float16, the rounding of what is stored.
"""

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from potara_jax.cli import main as cli
from tests.adapters.make_peft_fixtures import FOLDER, base, layers, logits

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
WEIGHTS = (0.3, 0.7)
CASES = {
    ("federated", "local"): (),
    ("federated", "patterns"): ("--missing", "zero"),
    ("regex", "rslora"): ("--missing", "zero"),
    ("bfloat16", "bfloat16"): (),
    ("float16", "float16"): (),
    ("classifier", "classifier_local"): (),
}


def main() -> int:
    torch.manual_seed(0)
    tokens = torch.randint(1, 24, (8, 12))
    failed = [
        names for names, words in CASES.items() if not check(names, words, tokens)
    ]
    return len(failed)


def check(names, words, tokens) -> bool:
    kind = LlamaForCausalLM
    if names[0].startswith("classifier"):
        kind = LlamaForSequenceClassification
    with tempfile.TemporaryDirectory() as folder:
        merge(names, Path(folder) / "merged", words)
        model = load(kind, Path(folder) / "merged")
    dtype = names[0] if names[0] in TOLERANCE else "float32"
    expected = logits(mixed(kind, names), tokens)
    largest = lambda x: (x - expected).abs().max().item()
    difference = largest(logits(model, tokens))
    print(
        f"{' + '.join(names):31}{difference:.1e} from the exact mixture, which is "
        f"{largest(logits(base(kind), tokens)):.1f} from the base"
    )
    return difference < TOLERANCE[dtype]


def merge(names, out, words):
    pair = ("--federated", str(FOLDER / names[0]), "--local", str(FOLDER / names[1]))
    given = ("merge", *pair, "--weight", str(WEIGHTS[0]), "--out", str(out), *words)
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(given) == 0


def load(kind, folder):
    """The merged adapter on the base; PEFT must miss nothing and know every key."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        model = PeftModel.from_pretrained(base(kind), folder)
    again = model.load_adapter(folder, adapter_name="again")
    assert not again.unexpected_keys, again.unexpected_keys
    lacking = [key for key in again.missing_keys if "lora" in key or "again" in key]
    assert not lacking, lacking
    return model.eval().float()


def mixed(kind, names):
    """The base with the weighted deltas, and the weighted whole modules, put in."""
    model = base(kind)
    for weight, name in zip(WEIGHTS, names, strict=True):
        adapted = PeftModel.from_pretrained(base(kind), FOLDER / name).float()
        for path, layer in layers(adapted).items():
            target = model.get_submodule(path).weight
            target.data += weight * layer.get_delta_weight("default").float()
        if kind is LlamaForSequenceClassification:
            head = adapted.base_model.model.score.modules_to_save["default"].weight
            first = weight == WEIGHTS[0]
            model.score.weight.data = weight * head.data + (
                0 if first else model.score.weight.data
            )
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
