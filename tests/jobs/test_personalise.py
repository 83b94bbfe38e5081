"""Personalisation in one call: any Flax model, any loss, and nothing on disk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

import potara_jax as pj
from potara_jax.adapters import peft
from tests.jobs.tiny import reproducible

COUNTS = (30, 24, 40)
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHORT = {
    "lora": pj.Lora(rank=2, targets=("hidden",)),
    "federated": pj.Federated(rounds=3),
    "local": pj.Local(rounds=2),
    "training": pj.Training(steps=2, batch_size=4),
    "key": KEY,
    "progress": False,
}


class Classifier(nn.Module):
    """Two layers, and perhaps a normalisation between them."""

    normalise: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="hidden")(x)
        if self.normalise:
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3, name="head")(nn.relu(x))


class Regressor(nn.Module):
    """Two layers and one output."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="out")(nn.relu(nn.Dense(8, name="hidden")(x)))[:, 0]


def squared_error(apply, batch):
    return 0.5 * (apply(batch.inputs) - batch.labels) ** 2


INPUTS = [RNG.normal(size=(n, 5)).astype("float32") for n in COUNTS]


def clients(labels) -> pj.Federation:
    examples = [(x, labels(i, x)) for i, x in enumerate(INPUTS)]
    return pj.Federation.of(examples, heldout=6, test=0.2, key=KEY)


def classes(client, x):
    return ((x[:, 0] > 0) + client % 2).astype("int32")


def variables(model):
    return jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 5)))


def classified(**changes) -> pj.Result:
    model = Classifier()
    base = variables(model)["params"]
    task = pj.classification(model)
    return pj.personalise(task, base, clients(classes), **(SHORT | changes))


@pytest.fixture(scope="module")
def result() -> pj.Result:
    return classified()


@pytest.fixture(scope="module")
def regressed() -> pj.Result:
    model = Regressor()
    federation = clients(lambda client, x: x[:, 0] * (1 + client))
    task = pj.objective(model, squared_error)
    return pj.personalise(task, variables(model)["params"], federation, **SHORT)


ROWS = ("base", "federated", "local", "federated + fine-tuning")
MERGED = ("uniform", "potara factor", "potara core", "tempered_bayes")


def test_the_table_has_both_parents_and_the_default_merges(result):
    records = {record["method"]: record for record in result.results["methods"]}
    assert {*ROWS, *MERGED} <= set(records)
    assert all(len(record["accuracy"]) == len(COUNTS) for record in records.values())
    assert result.results["metric"] == {"name": "accuracy", "percent": True}
    assert "potara core" in result.table()._repr_html_()


def test_adapters_are_stacked_over_clients_by_method(result):
    assert {*ROWS, *MERGED} <= set(result.adapters)
    for name in ("federated", "local"):
        (entry,) = result.adapters[name].values()
        assert entry["a"].shape == (3, 5, 2) and entry["b"].shape == (3, 2, 8)
    (federated,), (local,), (half,) = (
        result.adapters[name].values() for name in ("federated", "local", "uniform")
    )
    delta = lambda entry: np.asarray(entry["a"], np.float64) @ entry["b"]
    mean = (delta(federated) + delta(local)) / 2
    np.testing.assert_allclose(delta(half), mean, atol=1e-6)


def test_the_same_key_gives_the_same_bytes_and_no_file(
    result, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    again = classified()
    assert reproducible(again.results) == reproducible(result.results)
    for method, adapter in result.adapters.items():
        jax.tree.map(np.testing.assert_array_equal, again.adapters[method], adapter)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_another_key_gives_another_model_and_shows_its_progress(result, capsys):
    other = classified(key=jax.random.key(5), progress=True)
    pair = result.adapters["federated"], other.adapters["federated"]
    first, second = (jax.tree.leaves(adapter) for adapter in pair)
    assert any((x != y).any() for x, y in zip(first, second, strict=True))
    assert "natural-seed-0: all weights" in capsys.readouterr().err


def test_chunks_change_nothing(result):
    one = classified(compute=pj.Compute(chunk=1))
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6)
    for name in ("federated", "local"):
        jax.tree.map(close, one.adapters[name], result.adapters[name])


def test_training_lowers_the_loss_on_the_clients_tests(result):
    loss = {r["method"]: np.mean(r["loss"]) for r in result.results["methods"]}
    assert loss["local"] < loss["base"]


def test_the_report_and_the_models_are_written_to_given_folders(result, tmp_path):
    page = result.report(tmp_path / "report")
    assert page.is_file() and "potara core" in page.read_text()
    out = result.export(tmp_path / "peft", method="local")
    (cell,) = out.iterdir()
    folders = sorted(path.name for path in cell.iterdir())
    assert folders == ["client-000", "client-001", "client-002"]
    (entry,) = result.adapters["local"].values()
    source = peft.read(cell / "client-001")
    assert source.config["base_model_name_or_path"] is None  # no base is written
    read = source.adapter["hidden"]
    expected = 8 * np.float64(entry["a"][1]) @ np.float64(entry["b"][1])
    np.testing.assert_allclose(np.float64(read["a"]) @ read["b"], expected, rtol=1e-5)


def test_a_report_leaves_no_figure_of_another(result, regressed, tmp_path):
    result.report(tmp_path)
    before = {path.name for path in (tmp_path / "figures").iterdir()}
    regressed.report(tmp_path)
    after = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "accuracy.png" in before and "accuracy.png" not in after
    assert "loss.png" in after


@pytest.mark.parametrize("clients", [[3], [-1], [0, 7]])
def test_a_client_that_does_not_exist_is_not_exported(result, tmp_path, clients):
    number = clients[-1]
    with pytest.raises(ValueError, match=f"no client {number}: .* numbered 0 to 2"):
        result.export(tmp_path / "peft", method="local", clients=clients)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clients": 0}, r"clients is 0: it must be a list, such as \[0\]"),
        ({"clients": ["0"]}, "there is no client '0'"),
        ({"clients": [True]}, "there is no client True"),
        ({"dtype": "float64"}, "dtype is 'float64': it must be one of float32, bf"),
        ({"transformers": 3}, "transformers is 3: it must be one of 4, 5"),
        ({"folded": "yes"}, "folded is 'yes': it must be True or False"),
        ({"method": "ties"}, "no adapters of 'ties' were kept, only of base"),
    ],
)
def test_options_of_an_export_are_checked_before_anything_is_written(
    result, tmp_path, options, reason
):
    with pytest.raises(ValueError, match=reason):
        result.export(tmp_path / "peft", **({"method": "local"} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_label_prior_is_in_every_merge_and_in_what_is_exported(tmp_path):
    merging = pj.Merging(curvature="empirical", methods=("uniform",), label_prior="on")
    given = classified(merging=merging)
    rows = {record["method"]: record for record in given.results["methods"]}
    bias = given.adapters["federated + label prior"]["logit bias"]["bias"]
    for name in MERGED:
        weights = np.asarray(rows[name]["weights"])[:, None]
        merged = given.adapters[name]["logit bias"]["bias"]
        np.testing.assert_allclose(merged, weights * bias, rtol=1e-5)
    assert "logit bias" not in given.adapters["federated"]
    assert "logit bias" not in given.adapters["local"]
    assert given.results["diagnostics"][0]["label_prior"]["used"] is True
    folder = given.export(tmp_path / "peft", clients=[1]) / "natural-seed-0/client-001"
    head = peft.read(folder).adapter["head"]
    base = variables(Classifier())["params"]["head"]
    kept = given.adapters["tempered_bayes"]["logit bias"]["bias"][1]
    np.testing.assert_allclose(head["bias"], base["bias"] + kept, rtol=1e-5)
    np.testing.assert_allclose(head["kernel"], base["kernel"], rtol=1e-6)


# --- Other tasks ---------------------------------------------------------------------


def test_a_regression_is_scored_by_its_loss(regressed):
    records = {r["method"]: r for r in regressed.results["methods"]}
    assert {*ROWS, *MERGED} - {"tempered_bayes"} <= set(records)
    assert "hermite_bayes" in records, "the default weight of a loss"
    assert not {name for name in records if "label prior" in name}
    assert "balanced" not in records["local"]
    assert regressed.results["metric"] == {"name": "loss", "percent": False}
    for record in records.values():
        assert record["accuracy"] == [-loss for loss in record["loss"]]
    assert records["local"]["mean"] > records["base"]["mean"]
    best = records["best weight per client"]["mean"]
    assert best >= records["best constant weight"]["mean"]
    assert "Loss" in str(regressed.table().columns)
    assert "Accuracy" not in regressed.table()._repr_html_()


def test_a_regression_has_a_report(regressed, tmp_path):
    page = regressed.report(tmp_path).read_text()
    assert "accuracy" not in page.lower()
    assert "loss" in (tmp_path / "clients.csv").read_text().splitlines()[0]


def test_batch_statistics_stay_frozen():
    model = Classifier(normalise=True)
    base = variables(model)
    before = jax.tree.map(np.array, base)
    task = pj.classification(model)
    result = pj.personalise(task, base, clients(classes), **SHORT)
    jax.tree.map(np.testing.assert_array_equal, base, before)
    assert set(base) == {"params", "batch_stats"}
    (entry,) = result.adapters["potara core"].values()
    assert np.isfinite(entry["b"]).all() and np.abs(entry["b"]).max() > 0


def test_every_merge_that_the_task_allows_can_be_selected(result):
    methods = ("uniform", "ties", "regmean", "fisher", "grid", "learned")
    merging = pj.Merging(curvature="exact", samples=6, grid_points=3, methods=methods)
    rows = {r["method"] for r in classified(merging=merging).results["methods"]}
    assert {"uniform", "ties", "regmean", "fisher", "grid", "potara core"} <= rows
    assert "ties" not in {r["method"] for r in result.results["methods"]}


def test_another_algorithm_under_conditions():
    result = classified(
        federated=pj.Federated("fedsa", rounds=2),
        participation=pj.Participation(cohort="2", dropout=0.3),
        communication=pj.Communication(compression="int8"),
    )
    (entry,) = result.adapters["federated"].values()
    assert np.ptp(entry["b"], axis=0).max() > 0, "b is every client's own"


# --- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora": pj.Lora(rank=0)}, r"lora\.rank is 0: it must be"),
        ({"lora": pj.Lora(targets=("hiden",))}, "'hiden'"),
        ({"lora": pj.Lora(rank=9, targets=("hidden",))}, "rank 9"),
        ({"merging": pj.Merging(methods=("tie",))}, r"merging\.methods is tie"),
        ({"federated": pj.Federated("fedalt")}, "federated.algorithm is fedalt"),
        ({"federated": pj.Federated("mine")}, "federated.algorithm is mine"),
        ({"compute": pj.Compute("bfloat16")}, "compute.precision is bfloat16"),
        ({"compute": pj.Compute(remat=True)}, "compute.remat is on"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(changes, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        classified(**changes)
    assert "\n" not in str(refused.value)


def test_a_label_beyond_the_models_outputs_is_refused_with_its_client():
    model = Classifier()
    federation = clients(lambda client, x: classes(client, x) + (client == 1) * 2)
    base = variables(model)["params"]
    with pytest.raises(ValueError, match=r"client 1 has the label [34]: the model has"):
        pj.personalise(pj.classification(model), base, federation, **SHORT)


def test_a_client_that_is_left_out_is_named_in_a_warning_and_below_the_table():
    def broken_for_large_labels(apply, batch):
        return jnp.where(batch.labels > 50, jnp.nan, squared_error(apply, batch))

    model = Regressor()
    short = {"federated": pj.Federated(rounds=1), "local": pj.Local(rounds=1)}
    with pytest.warns(UserWarning, match="federated: client 2 is left out"):
        result = pj.personalise(
            pj.objective(model, broken_for_large_labels),
            variables(model)["params"],
            clients(lambda client, x: x[:, 0] + 100 * (client == 2)),
            **(SHORT | short),
        )
    (line,) = (x for x in result.table().notes if x.startswith("Left out"))
    assert "client 2 (the clients' own data, seed 0)." in line
    assert "client 1" not in line and line in " ".join(repr(result.table()).split())


def test_a_loss_that_is_a_mean_is_refused():
    model = Regressor()
    mean = lambda apply, batch: squared_error(apply, batch).mean()
    federation = clients(lambda client, x: x[:, 0])
    base = variables(model)["params"]
    with pytest.raises(ValueError, match="one number an example"):
        pj.personalise(pj.objective(model, mean), base, federation, **SHORT)


def test_a_terminal_shows_the_table(result):
    console = Console(width=100, record=True, quiet=False)
    with console.capture() as shown:
        console.print(result.table())
    assert "tempered_bayes" in shown.get()
