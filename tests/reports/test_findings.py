from __future__ import annotations

import pytest

from potara_jax.reports import findings
from potara_jax.reports.summary import PARENTS, summarise
from tests.reports.synthetic import synthetic


def sentence(means):
    """The only finding."""
    (text,) = sentences(means)
    return text


def sentences(means):
    """The findings of one heterogeneity; `means` are lists over seeds."""
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1, methods=1)
    template = results["methods"][0]
    results["methods"] = [
        template | {"method": method, "seed": seed, "mean": mean}
        for method, values in means.items()
        for seed, mean in enumerate(values)
    ]
    return findings.sentences(results)


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


def floored(means, largest_class=0.7):
    """What the lead says of the largest class."""
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1, methods=1)
    template = results["methods"][0]
    rows = {"base": 0.1, "largest class": largest_class} | means
    results["methods"] = [
        template | {"method": method, "seed": 0, "mean": mean}
        for method, mean in rows.items()
    ]
    return findings.unbeaten(summarise(results))


def test_the_lead_names_the_methods_that_do_not_beat_the_largest_class():
    end = "always answering with a client's largest class (70.0 %)."
    assert floored({"local": 0.71, "federated": 0.8}) == []
    assert floored({"local": 0.7, "federated": 0.8}) == [
        f"With Dirichlet 0.1, local does not beat {end}"
    ]
    assert floored({"local": 0.7, "ties": float("nan"), "federated": 0.8}) == [
        f"With Dirichlet 0.1, local, ties do not beat {end}"
    ]
    assert floored({"local": 0.7, "federated": 0.6}) == [
        f"With Dirichlet 0.1, no method beats {end}"
    ]
    many = {f"m{number}": 0.1 for number in range(8)}
    (text,) = floored(many | {"local": 0.9})
    assert "m0, m1, m2, m3, m4 and 3 more do not beat" in text


def test_the_largest_class_is_no_rival_of_the_merges():
    text = sentence(
        parents([0.67], [0.69]) | {"potara core": [0.7], "largest class": [0.65]}
    )
    assert text.endswith("spread is unknown).")
    top = parents([0.5], [0.6]) | {"uniform": [0.55], "largest class": [0.65]}
    results = sentences(top)
    assert results[0].startswith("With Dirichlet 0.1, uniform does not beat both")
    assert "no method beats always answering" in results[1]
