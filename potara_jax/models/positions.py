"""Learned position embeddings, fitted to images of other sizes.

Dimension letters: `H` rows of patches, `W` columns, `D` features of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.models import weights

Array = jax.Array
Grid = tuple[int, int]  # rows and columns of patches

_SLOPE = -0.75  # of the cubic kernel at distance 1, as PyTorch has it


def fitted(position: Array, learned: Grid, grid: Grid) -> Array:
    """Position embeddings of a grid of patches, from those learned for another one.

    Bicubic, without antialiasing, with the centres of the outer patches half a patch
    from the border: `torch.nn.functional.interpolate`, as transformers calls it for ViT
    and DINOv2. DINOv2's first implementation stretches the grid by a tenth of a patch.

    Args:
      position: `[1, 1 + H W, D]`, the class token's first.
      learned: the grid `(H, W)` that it is for.
      grid: the grid `(H', W')` of an image.

    Returns:
      `[1, 1 + H' W', D]` in float32. The class token's is unchanged.
    """
    position = position.astype(jnp.float32)
    if grid == learned:
        return position
    patches_HWD = position[0, 1:].reshape(*learned, -1)
    rows, columns = (cubic(*sizes) for sizes in zip(learned, grid, strict=True))
    patches_HWD = jnp.einsum(
        "ih,jw,hwd->ijd", rows, columns, patches_HWD, precision="highest"
    )
    patches = patches_HWD.reshape(1, -1, position.shape[-1])
    return jnp.concatenate([position[:, :1], patches], 1)


def cubic(inputs: int, outputs: int) -> np.ndarray:
    """The matrix `[outputs, inputs]` of cubic interpolation along an axis.

    Output `i` lies at `(i + 1/2) inputs / outputs - 1/2`, between the second and the
    third of the four inputs that it weighs; inputs beyond an end are the last one.
    Keys 1981, "Cubic convolution interpolation for digital image processing".

    Args:
      inputs: their number.
      outputs: their number.
    """
    places = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    before = np.floor(places).astype(int)
    matrix = np.zeros((outputs, inputs), np.float32)
    for step in range(-1, 3):
        sources = np.clip(before + step, 0, inputs - 1)
        distances = np.abs(places - before - step)
        np.add.at(matrix, (np.arange(outputs), sources), _kernel(distances))
    return matrix


def _kernel(distance: np.ndarray) -> np.ndarray:
    """The cubic kernel at distances of at most 2."""
    x, a = distance, _SLOPE
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)


def grid_of(description: Mapping[str, Any]) -> Grid:
    """The grid that the positions of a model with this `config.json` are for.

    Raises:
      ValueError: its `image_size` is no single number that holds a patch.
    """
    size, patch = description["image_size"], description["patch_size"]
    if isinstance(size, list):
        raise ValueError(f"image_size is for images of {size}: they must be square")
    weights.check_sizes(description, "image_size", "patch_size")
    if size < patch:
        raise ValueError(f"image_size is {size}, smaller than a patch of {patch}")
    return (size // patch,) * 2
