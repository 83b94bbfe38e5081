"""Check with PEFT that it loads exported adapters with transformers 4 and 5.

    python -m tests.models.check_exports_load write FOLDER
    python -m tests.models.check_exports_load load FOLDER

The first writes, with JAX, a ViT, a BERT and a RoBERTa: a base, an adapter for each
version of transformers, and the same model with the adapter folded in. The second needs
torch, transformers and peft, and no JAX: PEFT must know every key of the adapter that
is for the version that is installed, and compute what the folded model computes.
Measured with transformers 4.57.6 and 5.24.0 and peft 0.21.2, of the ViT and the BERT:
differences of logits of 5e-7 and 1e-7, where the adapters change them by 0.6 and 0.1;
of the RoBERTa, with transformers 5.17.0: 2e-7, where the adapter changes them by 1.0.
"""

import json
import sys
from pathlib import Path


def write(folder):
    from potara_jax.models import publishing
    from tests.models import test_bert
    from tests.models.test_publishing import images

    models = {
        "vit": images()[2:],
        "bert": test_bert.exported("bert"),
        "roberta": test_bert.exported("roberta", ("pooler", "head")),
    }
    for name, (base, adapter, form) in models.items():
        publishing.write_base(folder / name / "base", base, form)
        publishing.write_folded(folder / name / "folded", base, adapter, form)
        for version in (4, 5):
            publishing.write_adapter(
                folder / name / f"adapter-{version}",
                adapter,
                form,
                base=str(folder / name / "base"),
                transformers=version,
            )


def load(folder):
    import torch
    import transformers

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 8, 8, generator=generator)
    tokens = torch.randint(4, 50, (2, 8), generator=generator)
    mask = torch.arange(8) < torch.tensor([[8], [5]])
    sentences = {"input_ids": tokens, "attention_mask": mask.long()}
    vit = transformers.ViTForImageClassification
    bert = transformers.BertForSequenceClassification
    roberta = transformers.RobertaForSequenceClassification
    lost = load_one(folder / "vit", vit, {"pixel_values": image})
    lost |= load_one(folder / "bert", bert, sentences)
    return lost | load_one(folder / "roberta", roberta, sentences)


def load_one(folder, kind, inputs):
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file

    place = folder / f"adapter-{transformers.__version__.split('.')[0]}"
    model = PeftModel.from_pretrained(kind.from_pretrained(folder / "base"), place)
    result = model.load_adapter(place, adapter_name="again")
    stored = len(load_file(place / "adapter_model.safetensors"))
    logits = lambda x: x.eval()(**inputs).logits.detach()
    folded = logits(kind.from_pretrained(folder / "folded"))
    base = logits(kind.from_pretrained(folder / "base"))
    model.set_adapter("default")
    computed = logits(model)
    report = {
        "model": kind.__name__,
        "transformers": transformers.__version__,
        "tensors": stored,
        "unexpected": result.unexpected_keys,
        "missing": [k for k in result.missing_keys if "again" in k],
        "from the folded model": (computed - folded).abs().max().item(),
        "from the base": (computed - base).abs().max().item(),
    }
    print(json.dumps(report))
    lost = report["unexpected"] or report["missing"]
    return int(bool(lost) or report["from the folded model"] > 1e-5)


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2])
    sys.exit({"write": write, "load": load}[command](place))
