"""Personalise a classifier for every region of a CSV file.

Run `python examples/csv_data.py wine.csv`. The file's last two columns are the class,
counted from 0, and the region; all others are inputs:

    alcohol,acid,class,region
    12.8,3.1,0,1
    13.4,2.7,1,2
"""

import sys

import jax
import numpy as np
from flax import linen as nn

import potara_jax as pj
from potara_jax.data.tables import read_numbers


class Network(nn.Module):
    """Two layers."""

    classes: int

    @nn.compact
    def __call__(self, x):
        """Logits `[B, classes]` of inputs `[B, columns]`."""
        x = nn.relu(nn.Dense(16, name="hidden")(x))
        return nn.Dense(self.classes, name="head")(x)


def main(path, *, rounds=20):
    """Personalise, print the table, and write a report beside the file."""
    *columns, classes, region = read_numbers(path).values()
    inputs, classes = np.stack(columns, axis=1), classes.astype(int)
    inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).astype("float32")
    masks = [region == number for number in np.unique(region)]
    model, key = Network(int(classes.max()) + 1), jax.random.key(0)
    result = pj.personalise(
        pj.classification(model),
        model.init(key, inputs[:1])["params"],  # in practice: pre-trained
        pj.Federation.of(
            [(inputs[m], classes[m]) for m in masks], heldout=0.2, test=0.2, key=key
        ),
        lora=pj.Lora(rank=2, targets=("hidden",), whole=("head",)),
        federated=pj.Federated(rounds=rounds),
        local=pj.Local(rounds=rounds),
        key=key,
    )
    print(result.table())
    print(f"report: {result.report(f'{path}-report')}")
    return result


if __name__ == "__main__":
    main(sys.argv[1])
