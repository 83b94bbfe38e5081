from __future__ import annotations

import pytest

from potara_jax.reports import findings
from potara_jax.reports.summary import PARENTS
from tests.reports.synthetic import synthetic


def sentence(means):
    """The finding of one heterogeneity; `means` are lists over seeds."""
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1, methods=1)
    template = results["methods"][0]
    results["methods"] = [
        template | {"method": method, "seed": seed, "mean": mean}
        for method, values in means.items()
        for seed, mean in enumerate(values)
    ]
    (text,) = findings.sentences(results)
    return text


def parents(federated, local):
    return {PARENTS[0]: federated, PARENTS[1]: local}


def test_the_lead_of_a_gain():
    assert sentence(parents([0.841], [0.899]) | {"potara core": [0.912]}) == (
        "With Dirichlet 0.1, potara core reaches 91.2 % against 84.1 % federated and "
        "89.9 % local, a gain of +1.3 points over the better parent (one seed, so the "
        "spread is unknown)."
    )


@pytest.mark.parametrize("mean", [0.88, 0.899, 0.8994])
def test_the_lead_says_when_a_parent_is_not_beaten(mean):
    text = sentence(parents([0.841], [0.899]) | {"potara core": [mean]})
    assert "does not beat both of its parents" in text
    assert "reaches" not in text


def test_the_lead_says_when_a_gain_is_within_the_spread():
    both = parents([0.5, 0.5], [0.6, 0.6])
    assert "within the spread" in sentence(both | {"potara core": [0.60, 0.64]})
    assert "within the spread" not in sentence(both | {"potara core": [0.68, 0.69]})


def test_the_lead_names_a_better_method():
    both = parents([0.5], [0.6]) | {"potara core": [0.7]}
    assert sentence(both | {"Hermite": [0.75]}).endswith(
        "; the best method that sees no test data is Hermite with 75.0 %."
    )
    assert "Hermite" not in sentence(both | {"Hermite": [0.65]})


def test_the_lead_does_without_parents():
    text = sentence({"potara core": [0.7]})
    assert text == "With Dirichlet 0.1, potara core reaches 70.0 %."


def test_the_lead_of_losses():
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1, methods=1)
    template = results["methods"][0]
    means = {"federated": -0.5, "local": -0.75, "potara core": -0.25}
    results["methods"] = [
        template | {"method": method, "mean": mean} for method, mean in means.items()
    ]
    results["metric"] = {"name": "loss", "percent": False}
    assert findings.sentences(results) == [
        "With Dirichlet 0.1, potara core reaches a loss of 0.250 against 0.500 "
        "federated and 0.750 local, a gain of +0.250 over the better parent (one seed, "
        "so the spread is unknown)."
    ]


def test_a_method_that_diverged_is_said_to_and_its_rival_named():
    nan = float("nan")
    text = sentence(parents([nan], [0.899]) | {"potara core": [nan], "grid": [0.91]})
    assert text == (
        "With Dirichlet 0.1, potara core diverged; the best method that sees no test "
        "data is grid with 91.0 %."
    )
    text = sentence(parents([nan], [nan]) | {"potara core": [nan]})
    assert text == "With Dirichlet 0.1, potara core diverged."
