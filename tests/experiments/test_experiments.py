"""Every experiment makes its problem, and refuses settings that cannot be."""

import importlib
import json
import pkgutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from potara_jax import experiments
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import client_folder
from potara_jax.experiments import (
    cifar100,
    clients,
    commonsense,
    digits,
    flan,
    glue,
    images,
    sentences,
    text,
)
from potara_jax.experiments import tasks as generated_tasks
from potara_jax.federated.registry import algorithms
from potara_jax.jobs.tune import trials
from tests import small
from tests.models.test_parity import FIXTURES

pytestmark = pytest.mark.slow

NAMES = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
ALL = {
    n: importlib.import_module(f"{experiments.__name__}.{n}").EXPERIMENT for n in NAMES
}
USERS = {"images", "text", "clients", "sentences"}
RNG = np.random.default_rng(0)
# Small problems.
CELLS = {"cells.seeds": (0,), "cells.clients": 4, "merging.samples": 4, "lora.rank": 2}
SHORT = CELLS | {"pretraining.steps": 2}
TINY_VIT = {"source.width": 32, "source.depth": 1, "pretraining.batch_size": 4}
TINY_LLAMA = {"source.width": 32, "source.depth": 1, "source.vocabulary": 300}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    small.sets(folder, 30)
    small.models(folder)
    small.sentences(folder / "sentences", 60)
    return folder


def made(module, changes, log=lambda line: None):
    """A checked experiment, and its problem."""
    experiment = module.EXPERIMENT.set(changes)
    experiment = experiment.resolve(experiment)
    experiment.check()
    problem = experiment.make_problem(experiment, Resources(log=log))
    check(problem, experiment)
    return experiment, problem


def check(problem, experiment):
    """All parts are disjoint, and the task is defined on the federation's examples."""
    cells = experiment.cells
    assert list(problem.federations) == [
        (h, seed) for h in cells.heterogeneity for seed in cells.seeds
    ]
    for federation in problem.federations.values():
        check_parts(federation, cells.clients)
    adapter = problem.adapter(jax.random.key(0))
    assert all(path in adapter for path in experiment.lora.whole)
    batch = jax.tree.map(lambda x: x[:2], federation.pool)
    loss, right = jax.jit(problem.task.judge)(problem.base, adapter, batch)
    assert loss.shape == right.shape == (2,) and np.isfinite(loss).all()


def check_parts(federation, clients):
    assert len(federation.train.count) == clients
    trained, measured = (
        [set(np.asarray(i[:n]).tolist()) for i, n in zip(r.index, r.count, strict=True)]
        for r in (federation.train, federation.heldout)
    )
    tested = np.asarray(federation.test.index)[np.asarray(federation.test.weight) > 0]
    everything = set().union(*trained)
    assert sum(map(len, trained)) == len(everything)
    assert not everything & (set().union(*measured) | set(tested.tolist()))
    assert not set().union(*measured) & set(tested.tolist())
    np.testing.assert_allclose(federation.test.weight.sum(1), 1, rtol=1e-5)


# --- Values --------------------------------------------------------------------------


def test_the_experiments_are_the_files():
    users = ["clients", "images", "sentences", "text"]
    public = ["cifar100", "commonsense", "digits", "dinov2", "flan", "glue", "tasks"]
    assert sorted(ALL) == sorted(users + public)
    assert all(name == experiment.name for name, experiment in ALL.items())
    assert all(isinstance(experiment, Experiment) for experiment in ALL.values())


@pytest.mark.parametrize("name", sorted(set(NAMES) - USERS))
def test_defaults_are_accepted(name):
    ALL[name].check()


@pytest.mark.parametrize("name", NAMES)
def test_presets_name_settings_of_the_experiment(name):
    for changes in ALL[name].presets.values():
        changed = ALL[name].set(changes).settings()
        values = json.loads(json.dumps(changed))
        assert all(
            values[n] == json.loads(json.dumps(value)) for n, value in changes.items()
        )


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_restored_from_json(name):
    settings = json.loads(json.dumps(ALL[name].settings()))
    assert ALL[name].restored(settings) == ALL[name]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"clients"}))
def test_experiments_of_texts_measure_drawn_labels(name):
    experiment = ALL[name]
    of_texts = "q_proj" in experiment.lora.targets or name == "tasks"
    assert (experiment.merging.curvature == "sampled") == of_texts


def test_what_was_tuned_is_read():
    tuned = ALL["digits"].tuned
    assert tuned["ffa"] == {"local_rate": 0.01}
    assert set(tuned) == set(algorithms()) - {"local"}
    assert all(options in trials(name) for name, options in tuned.items())


# --- Problems ------------------------------------------------------------------------


def pixels(number, classes=6, side=8):
    labels = np.arange(number) % classes
    return RNG.integers(0, 256, (number, side, side, 3), np.uint8), labels


@pytest.fixture
def npz(tmp_path):
    array, labels = pixels(300)
    np.savez(tmp_path / "a.npz", images=array, labels=labels)
    return tmp_path / "a.npz"


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "texts").mkdir()
    paths = [tmp_path / "texts" / f"{task}.jsonl" for task in range(3)]
    for task, path in enumerate(paths):
        rows = [{"text": f"{task} is {i}", "label": i % (task + 2)} for i in range(90)]
        path.write_text("\n".join(map(json.dumps, rows)))
    return tuple(paths)


def test_digits_share_images_where_clients_are_many():
    changes = SHORT | {"source.depth": 1, "cells.heterogeneity": ("0.1", "tasks")}
    _, few = made(digits, changes)
    assert few.held("0.1", 0).clients == ()
    ways = few.held("tasks", 0).clients
    assert ways[:2] == ("upright", "mirrored") and len(ways) == changes["cells.clients"]
    changes |= {"cells.clients": 400}
    experiment = digits.EXPERIMENT.set(changes)
    with pytest.raises(ValueError, match=r"take fewer clients.*: set source\.examples"):
        experiment.make_problem(experiment, Resources())
    experiment = experiment.set({"source.examples": 20})
    problem = experiment.make_problem(experiment, Resources())
    assert len(problem.federations["0.1", 0].train.count) == 400


def test_images_are_pretrained_on_some_classes(npz):
    changes = SHORT | TINY_VIT | {"source.data": (npz,), "source.upstream": 0.5}
    _, problem = made(images, changes)
    assert problem.base["head"]["kernel"].shape == (32, 3)
    assert problem.contents.kind == "class" and len(problem.contents.names) == 3


def test_images_with_a_checkpoint_are_all_the_clients(npz, files):
    changes = {"source.data": (npz,), "source.checkpoint": str(files / "vit")}
    experiment, problem = made(images, CELLS | changes)
    assert problem.base["head"]["kernel"].shape == (32, 6)
    paths = experiment.files(experiment)
    assert paths[0] == npz and files / "vit" / "config.json" in paths


def test_an_image_that_is_repeated_is_used_once(npz):
    log = []
    changes = SHORT | TINY_VIT | {"source.data": (npz, npz), "source.upstream": 0.5}
    made(images, changes, log.append)
    assert log[0] == "300 images are duplicates: one of each is kept"


@pytest.mark.parametrize("model", ["vit", "dinov2"])
def test_cifar100_with_a_pretrained_model(model, files):
    sources = {
        "vit": {"source.checkpoint": str(files / "vit")},
        "dinov2": {
            "source.checkpoint": str(FIXTURES / "dinov2"),
            "source.image_size": 8,
            "source.layers": 1,
        },
    }
    changes = {
        "source.data_dir": files / "sets",
        "cells.heterogeneity": ("0.5",),
        "compute.precision": "bfloat16",
    }
    experiment, problem = made(cifar100, CELLS | changes | sources[model])
    assert problem.form.config["model_type"] == model
    federation = problem.federations["0.5", 0]
    assert federation.pool.inputs.shape == (600, 32, 32, 3)
    test = np.asarray(federation.test.index)[np.asarray(federation.test.weight) > 0]
    assert test.min() >= 300  # the official test images, and none but those
    of_a_name = experiment.set({"source.checkpoint": "owner/model"})
    assert experiment.files(experiment) and not of_a_name.files(of_a_name)


@pytest.mark.parametrize("module", [commonsense, flan])
def test_suites_with_a_pretrained_llama(module, files):
    log = []
    changes = {
        "source.data_dir": files / "sets",
        "source.checkpoint": str(files / "llama"),
        "source.context": 80,
        "lora.rank": 2,
    }
    _, problem = made(module, changes, log.append)
    federation = problem.federations["tasks", 0]
    assert federation.proportions.shape == (8, 8)
    np.testing.assert_array_equal(federation.proportions.argmax(1), range(8))
    assert all("have more than 80 tokens" in line for line in log)


def test_generated_tasks():
    _, problem = made(generated_tasks, SHORT | {"source.examples": 40})
    assert problem.contents.kind == "task" and len(problem.contents.names) == 16


def test_texts_are_pretrained_on_a_part_of_the_files(lines):
    _, problem = made(text, SHORT | TINY_LLAMA | {"source.data": lines})
    assert problem.contents.names == ("0", "1", "2")


def test_texts_with_a_checkpoint_name_the_files_that_no_client_has(lines, files):
    log = []
    changes = {"source.data": lines, "source.checkpoint": str(files / "llama")}
    made(text, CELLS | changes | {"cells.clients": 2}, log.append)
    assert log == ["no client has 2.jsonl, with one task each; set cells.clients"]


def of_sentences(files, **changes):
    given = {
        "source.data": (files / "sentences",),
        "source.checkpoint": str(files / "bert"),
        "lora.targets": ("query", "value"),
    }
    return CELLS | given | changes


def test_sentences_give_clients_one_task_each_in_turn(files):
    changes = of_sentences(files) | {"cells.clients": 6, "merging.samples": 2}
    experiment, problem = made(sentences, changes)
    assert problem.contents.names == (
        *("sst2 0", "sst2 1", "subj 0", "subj 1", "trec 0", "trec 1", "trec 2"),
    )
    federation = problem.federations["tasks", 0]
    tasks = np.asarray(federation.pool.inputs.task)
    for client in range(6):
        index = np.asarray(federation.train.index[client])
        mine = index[: int(federation.train.count[client])]
        assert set(tasks[mine].tolist()) == {client % 3}
    names = {path.name for path in experiment.files(experiment)}
    assert {"sst2.train.jsonl.gz", "sst2.test.jsonl.gz", "vocab.txt"} <= names
    assert "choices.jsonl" not in names


def test_sentences_of_one_task_are_dealt_by_their_labels(files):
    changes = of_sentences(files, **{"source.tasks": ("trec",), "cells.clients": 2})
    changes |= {"cells.heterogeneity": ("0.5",)}
    _, problem = made(sentences, changes)
    assert problem.contents.names == ("0", "1", "2")
    assert problem.federations["0.5", 0].proportions.shape == (2, 3)
    assert problem.base["head"]["kernel"].shape == (32, 3)


def test_glue_deals_one_task_and_tests_on_what_it_calls_validation(files):
    changes = {
        "source.tasks": ("mrpc",),
        "source.data_dir": files / "sets",
        "source.checkpoint": str(files / "roberta"),
        "cells.clients": 2,
    }
    experiment, problem = made(glue, CELLS | changes)
    assert problem.contents.names == ("not_equivalent", "equivalent")
    federation = problem.federations["0.5", 0]
    assert federation.pool.labels.shape == (60,)
    test = np.asarray(federation.test.index)[np.asarray(federation.test.weight) > 0]
    assert test.min() >= 30
    assert files / "roberta" / "tokenizer.json" in experiment.files(experiment)


# --- Natural clients -----------------------------------------------------------------


def save_clients(folder):
    """Three clients with images, one of them as a folder."""
    for client in range(3):
        array, labels = pixels(40, classes=2 + client)
        if client:
            np.savez(folder / f"{client}.npz", images=array, labels=labels)
            continue
        for number, (image, label) in enumerate(zip(array, labels, strict=True)):
            path = folder / "0" / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def natural(folder, **changes):
    given = SHORT | {"source.data": (folder,), "cells.clients": 0} | changes
    return clients.EXPERIMENT.set(given)


def test_clients_with_texts(lines):
    log = []
    changes = TINY_LLAMA | {"source.data": (lines[0].parent,), "cells.clients": 0}
    experiment, problem = made(clients, SHORT | changes, log.append)
    assert experiment.cells.clients == 2
    assert experiment.merging.curvature == "sampled"
    assert experiment.pretraining.batch_size == 32 and not experiment.lora.whole
    assert problem.contents.kind == "label" and len(problem.contents.clients) == 2
    assert log[0].startswith("the base is pre-trained on ")


def test_clients_with_images(tmp_path):
    save_clients(tmp_path)
    changes = TINY_VIT | {"source.data": (tmp_path,), "cells.clients": 0}
    experiment, problem = made(clients, SHORT | changes)
    assert experiment.cells.clients == 2
    assert experiment.lora.targets == ("query", "value")
    assert experiment.lora.whole == ("head",)
    assert experiment.merging.curvature == "empirical"
    assert experiment.pretraining.batch_size == 4
    assert experiment.pretraining.learning_rate == 1e-3
    assert set(problem.contents.clients) < {"0", "1.npz", "2.npz"}


def test_what_the_user_set_stays_and_a_resolved_experiment_is_resolved(tmp_path):
    save_clients(tmp_path)
    given = {
        "lora.whole": (),
        "lora.targets": ("key",),
        "merging.curvature": "exact",
        "cells.clients": 1,
    }
    experiment = client_folder.resolve(natural(tmp_path, **given))
    values = experiment.settings()
    assert all(values[n] == given[n] or values[n] == list(given[n]) for n in given)
    assert client_folder.resolve(experiment) == experiment


def test_clients_share_their_labels(tmp_path):
    for client in range(3):
        rows = [{"text": f"{client} is {i}", "label": client} for i in range(30)]
        (tmp_path / f"{client}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = TINY_LLAMA | {"source.data": (tmp_path,), "cells.clients": 0}
    _, problem = made(clients, SHORT | changes)
    pool = problem.federations["natural", 0].pool
    assert pool.inputs.answers.shape[1] == 3  # options of all clients together


def test_clients_with_one_label_are_refused(tmp_path):
    rows = [json.dumps({"text": f"is {i}", "label": 0}) for i in range(30)]
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    experiment = client_folder.resolve(natural(tmp_path))
    with pytest.raises(ValueError, match="all files have only the label '0'"):
        experiment.make_problem(experiment, Resources())


def test_a_client_with_too_few_examples_is_named(tmp_path):
    for name, number in (("a", 30), ("b", 9), ("c", 30)):
        array, labels = pixels(number, classes=3)
        np.savez(tmp_path / f"{name}.npz", images=array, labels=labels)
    experiment = client_folder.resolve(natural(tmp_path))
    with pytest.raises(ValueError, match=r"b\.npz has 9 examples: fewer than 10"):
        experiment.make_problem(experiment, Resources())


def test_clients_of_two_kinds_are_refused(tmp_path):
    save_clients(tmp_path)
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"texts \(notes.json\) and images \(2.npz\)"):
        client_folder.resolve(natural(tmp_path))


# --- Refusals ------------------------------------------------------------------------

HUGE = 2**64
REFUSED = [
    (images, {}, "source.data is empty"),
    (text, {}, "source.data is empty"),
    (clients, {}, "source.data is empty: it must be one folder"),
    (
        clients,
        {"source.data": (Path("nowhere"),)},
        "source.data is nowhere: it must be one",
    ),
    (text, {"source.seen": 0}, "source.seen is 0: it must be from 1 to 1"),
    (text, {"source.depth": 0}, "source.depth is 0"),
    (text, {"source.train_examples": 8}, "source.train_examples is 8"),
    (text, {"source.width": 33}, "source.width is 33: it must be a multiple of 32"),
    (text, {"source.vocabulary": 100}, "source.vocabulary is 100"),
    (text, {"source.vocabulary": 10**20}, "source.vocabulary is 1000"),
    (text, {"pretraining.steps": -5}, "pretraining.steps is -5"),
    (text, {"cells.heterogeneity": ("natural",)}, "cells.heterogeneity is natural"),
    (images, {"pretraining.seed": HUGE}, "pretraining.seed is"),
    (images, {"source.width": 33}, "source.width is 33"),
    (images, {"source.side": 0}, "source.side is 0"),
    (images, {"source.side": 3 * 10**9}, "source.side is 3000000000"),
    (images, {"source.upstream": 1.0}, "source.upstream is 1.0: it must be in"),
    (images, {"source.upstream": 0.0}, "source.upstream is 0.0: it must be above 0"),
    (
        generated_tasks,
        {"source.seen": 17},
        "source.seen is 17: it must be from 1 to 16",
    ),
    (generated_tasks, {"source.examples": 9}, "source.examples is 9"),
    (digits, {"source.depth": 0}, "source.depth is 0"),
    (cifar100, {"source.test_examples": 0}, "source.test_examples is 0"),
    (cifar100, {"source.class_examples": 4}, "source.class_examples is 4"),
    (flan, {"source.context": 4}, "source.context is 4"),
    (flan, {"source.examples_seed": -1}, "source.examples_seed is -1"),
    (flan, {"merging.curvature": "auto"}, "merging.curvature is auto"),
]


@pytest.mark.parametrize(("module", "changes", "reason"), REFUSED)
def test_an_invalid_setting_is_named(module, changes, reason):
    given = (
        {"source.data": (Path("x"),)} if module in (text, images) and changes else {}
    )
    experiment = module.EXPERIMENT.set(given | changes)
    with pytest.raises(ValueError, match=reason):
        experiment.resolve(experiment).check()


def test_shards_are_never_shared():
    changes = {"source.examples": 40, "cells.heterogeneity": ("shards2",)}
    with pytest.raises(ValueError, match=r"source.examples is 40: it must be unset"):
        digits.EXPERIMENT.set(changes).check()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source.upstream": 5.0}, "source.upstream is 5.0"),
        ({"source.upstream": float("nan")}, "source.upstream is nan"),
        ({"source.upstream": 0.0}, "source.upstream is 0.0: it must be above 0"),
        ({"source.side": 0}, "source.side is 0"),
        (
            {"cells.heterogeneity": ("0.1",)},
            "cells.heterogeneity is 0.1: it must be na",
        ),
        ({"cells.clients": 5}, "cells.clients is 5: it must be 2 or less"),
    ],
)
def test_settings_of_natural_clients_are_checked(changes, reason, tmp_path):
    save_clients(tmp_path)
    with pytest.raises(ValueError, match=reason):
        client_folder.resolve(natural(tmp_path, **changes)).check()


@pytest.mark.parametrize(
    ("module", "changes", "reason"),
    [
        (
            text,
            {"source.data": (Path("nowhere.jsonl"),)},
            "nowhere.jsonl is not a file",
        ),
        (
            images,
            {"source.data": (Path("nowhere.npz"),)},
            "neither an .npz file nor a folder",
        ),
        (generated_tasks, {"merging.curvature": "exact"}, "it must be sampled or"),
        (generated_tasks, {"cells.clients": 600}, "take fewer clients"),
        (flan, {"source.checkpoint": "no where"}, "neither a folder nor a name"),
    ],
)
def test_a_problem_that_cannot_be_made_says_why(module, changes, reason):
    experiment = module.EXPERIMENT.set(changes)
    with pytest.raises(ValueError, match=reason):
        experiment.make_problem(experiment, Resources())
