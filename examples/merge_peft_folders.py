"""Merge two adapters that Hugging Face PEFT wrote, and see what a lower rank loses.

Run `python examples/merge_peft_folders.py FEDERATED LOCAL OUT`. It needs no torch. The
command `potara merge` merges folders as well; in Python, everything between reading and
writing is yours.
"""

import math
import sys

from potara_jax import merging
from potara_jax.adapters import algebra, peft, peft_config


def size(adapter):
    """The norm of all deltas together."""
    entries = [entry for entry in adapter.values() if "a" in entry]
    return math.hypot(*(float(algebra.norm(entry)) for entry in entries))


def main(federated, local, out, *, weight=0.5, ranks=(1, 2, 4)):
    """Merge at a weight of the federated adapter, print, and write the result."""
    sources = [peft.read(federated), peft.read(local)]
    merged = merging.merge(peft.align(sources), [weight, 1 - weight])
    kept = {}
    for rank in ranks:
        kept[rank] = (size(merging.truncate(merged, rank=rank)) / size(merged)) ** 2
        print(f"rank {rank} keeps {kept[rank]:.1%} of the merged deltas' squared norm")
    peft.write(out, merged, peft_config.merged_config([s.config for s in sources]))
    return kept


if __name__ == "__main__":
    main(*sys.argv[1:4])
