"""Users' own data, through the command line."""

import json

import numpy as np
import pytest

from potara_jax.cli.main import main
from potara_jax.experiment import phases
from tests import small

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
SHORT = (
    "--cells.seeds 0 --cells.heterogeneity 0.5 --cells.clients 2 --lora.rank 2 "
    "--training.steps 2 --federated.rounds 2 --local.rounds 1 --merging.samples 4 "
    "--merging.grid-points 3 --merging.methods uniform --pretraining.steps 2 "
    "--pretraining.batch-size 4 --width 32 --depth 1"
)


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "a.npz"
    save_images(path)
    return path


def save_images(path, number=200, classes=4):
    pixels = RNG.integers(0, 256, (number, 8, 8, 3), np.uint8)
    np.savez(path, images=pixels, labels=np.arange(number) % classes)


def places(folder):
    return ["--out", str(folder / "out"), "--cache", str(folder / "cache")]


def refusal(words, capsys):
    """The one line that a refused command ends with."""
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert error.startswith("potara: ") and error.count("\n") == 1
    return error


def test_a_run_does_not_go_on_with_changed_images_or_weights(
    npz, tmp_path, capsys, monkeypatch
):
    """Here one that was interrupted; other files beside the weights may change."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "name_left_out", interrupt)
    small.vision_model(tmp_path / "vit")
    folder, short = tmp_path / "vit", SHORT.replace("--width 32 --depth 1", "")
    words = ["run", "images", "--data", str(npz), "--checkpoint", str(folder)]
    words += [*short.split(), *places(tmp_path)]
    assert main(words) == 130
    (folder / "notes.txt").write_text("not read")
    assert main(words) == 130
    before = npz.read_bytes()
    save_images(npz)
    capsys.readouterr()
    error = refusal(words, capsys)
    assert "changed since" in error and "rerun to replace" in error
    npz.write_bytes(before)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=3))
    assert "changed since" in refusal(words, capsys)


def test_clients_with_texts_from_a_folder_to_a_report(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for client in range(3):
        kinds = ("even", "odd")
        rows = "".join(f"{client} is {i},{kinds[i % 2]}\n" for i in range(40))
        (data / f"{client}.csv").write_text("Text,Label\n" + rows)
    short = SHORT.replace("--cells.heterogeneity 0.5 --cells.clients 2 ", "")
    words = ["run", "clients", "--data", str(data), "--vocabulary", "300"]
    assert main([*words, *short.split(), *places(tmp_path)]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["cells.clients"] == 2
    assert config["cells.heterogeneity"] == ["natural"]
    assert config["merging.curvature"] == "sampled"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    held = results["diagnostics"][0]["held"]
    assert (held["kind"], held["names"]) == ("label", ["even", "odd"])
    assert results["settings"]["source.data"] == [str(data)]
    assert (tmp_path / "out" / "report.html").is_file()
    rows = {record["method"]: record for record in results["methods"]}
    assert rows["largest class"]["mean"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("images", "source.data is empty"),
        ("text --data nowhere.jsonl", "nowhere.jsonl is not a file"),
        ("images --data x --layers 2", "source.layers is 2: it must be left out"),
        ("images --data nowhere.npz", "neither an .npz file nor a folder"),
        ("clients --data nowhere", "source.data is nowhere: it must be one folder"),
        (
            "images --data x --upstream 1",
            "source.upstream is 1.0: it must be in [0, 1)",
        ),
        ("text --data x --vocabulary 100", "source.vocabulary is 100"),
        ("images --data x --pretraining.seed -1", "pretraining.seed is -1"),
        (
            "images --data x --cells.clients 3 --participation.newcomers 0.99",
            "newcomer",
        ),
        ("tasks --merging.curvature exact", "merging.curvature is exact"),
        ("digits --cells.heterogeneity shards²", "cells.heterogeneity is shards²"),
        ("digits --participation.cohort ²", "participation.cohort is ²"),
        ("digits --training.learning-rate inf", "training.learning_rate is inf"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, reason, tmp_path, capsys):
    assert reason in refusal(["run", *words.split(), *places(tmp_path)], capsys)


def test_a_run_folder_among_the_data_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATA").mkdir()
    words = "run images --data DATA --cache cache --out DATA/out"
    error = refusal(words.split(), capsys)
    assert "DATA/out" in error and not (tmp_path / "DATA" / "out").exists()


def test_an_invalid_cache_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    words = ["run", "digits", "--out", tmp_path / "out", "--cache", cache]
    assert "cannot use" in refusal(words, capsys)
