"""The examples in docstrings give what they say."""

import doctest
import importlib

import pytest

EXAMPLES = {
    "adapters.algebra": {"concatenate", "delta", "norm"},
    "adapters.lora": {"find_sites", "init"},
    "data.federation": {"Federation.of"},
    "federated.aggregation": {"weighted_mean"},
    "federated.ledger": {"payload_bytes"},
    "federated.privacy": {"clipped"},
    "keys": {"subkey"},
    "merging.closed_form": {"best_weight"},
    "merging.combining": {"merge", "pair"},
    "merging.label_prior": {"shift"},
    "merging.registry": {"merges"},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name):
    module = importlib.import_module(f"potara_jax.{name}")
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    prefix = f"{module.__name__}."
    assert {test.name.removeprefix(prefix) for test in found} == EXAMPLES[name]
    said: list[str] = []
    for test in found:
        doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)
