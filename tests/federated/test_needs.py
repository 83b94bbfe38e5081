import pytest

from potara_jax.federated.algorithms.feddpa import instance_wise
from potara_jax.federated.registry import algorithms
from tests.helpers_federated import task, whole_batches


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_algorithms_that_change_the_base_need_a_way_to(name):
    make = algorithms()[name].make
    with pytest.raises(ValueError, match="needs a way to add deltas to the base"):
        make(task._replace(add=None), whole_batches)


@pytest.mark.parametrize("missing", ["features", "logits"])
def test_mixing_by_input_needs_features_and_logits(missing):
    with pytest.raises(ValueError, match=f"FedDPA needs {missing}"):
        instance_wise(task._replace(**{missing: None}))
