"""Examples of many clients as arrays: one pool, and which client holds which.

`Federation.of` makes a federation of each client's arrays. Data sets, partitioners and
tokenizers are modules of this package, imported where they are used.
"""

from potara_jax.data.arrays import Examples
from potara_jax.data.federation import Batch, Federation, Ragged, Weighted

__all__ = ["Batch", "Examples", "Federation", "Ragged", "Weighted"]
