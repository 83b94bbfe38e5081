"""Ways to see the same images: one for each group of clients.

Clients with heterogeneity `tasks` share the classes and differ in their inputs.
Dimension letters: `N` images, `H` `W` sides, `C` colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def _negative(images: np.ndarray) -> np.ndarray:
    """Bright for dark: of bytes, or of numbers from 0 to 1."""
    return (255 if images.dtype == np.uint8 else 1) - images


# From images `[N, H, W, C]` to images of the same shape, where the sides are equal.
TRANSFORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "negative": _negative,
    "transposed": lambda x: x.swapaxes(1, 2),
}
