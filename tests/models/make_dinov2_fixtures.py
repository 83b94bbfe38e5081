"""Tiny random DINOv2s of Hugging Face's, with what they compute: run by hand.

    pip install torch transformers
    python -m tests.models.make_dinov2_fixtures

Each folder has the checkpoint as `save_pretrained` writes it, and `golden.npz`: for
images of the size that positions are learned for and of another one, every hidden
state, and the logits or the normed features. `vit/other-size.npz` is what the ViT
computes for images of another size. Made with transformers 5.17.0.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ViTForImageClassification,
)

from tests.models.make_fixtures import FIXTURES, grow, write

IMAGES = (24, 24), (16, 36)  # with a patch of 4: 6 x 6 and 4 x 9 patches
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 24,
    "patch_size": 4,
}


def drawn(size: tuple[int, int]) -> torch.Tensor:
    """Two images `[B, C, H, W]`."""
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


@torch.no_grad()
def computed(model) -> dict[str, torch.Tensor]:
    """Images `[B, H, W, C]` of each size, and what becomes of them."""
    arrays = {}
    for number, size in enumerate(IMAGES):
        images = drawn(size)
        out = model(images, output_hidden_states=True)
        last = out.logits if "logits" in out else out.last_hidden_state
        states = torch.stack(out.hidden_states)  # the last one is before the norm
        values = {"images": images.permute(0, 2, 3, 1), "hidden": states, "last": last}
        arrays |= {f"{name}_{number}": value for name, value in values.items()}
    return arrays


def classifier(name: str) -> None:
    """A model with a head, and what it computes without its last block."""
    model = Dinov2ForImageClassification(Dinov2Config(**SIZES, num_labels=5))
    grow(model)
    short = copy.deepcopy(model.dinov2)
    del short.encoder.layer[-1]
    fewer = short(drawn(IMAGES[0])).last_hidden_state
    write(name, model, "1GB", **computed(model), fewer_layers=fewer)


def gated(name: str) -> None:
    """A model without a head whose MLP is a SwiGLU, in float16."""
    model = Dinov2Model(Dinov2Config(**SIZES, use_swiglu_ffn=True))
    grow(model)
    arrays = computed(model.half().float())
    write(name, model.half(), "1GB", **arrays)


@torch.no_grad()
def vit_of_another_size(folder: Path) -> None:
    """The ViT in a folder, whose images are 16 by 16."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    images = drawn((24, 12))
    out = model(images, interpolate_pos_encoding=True)
    arrays = {"images": images.permute(0, 2, 3, 1), "logits": out.logits}
    np.savez_compressed(
        folder / "other-size.npz", **{k: x.numpy() for k, x in arrays.items()}
    )


def main() -> None:
    """All of them."""
    classifier("dinov2")
    gated("dinov2-swiglu")
    vit_of_another_size(FIXTURES / "vit")


if __name__ == "__main__":
    main()
