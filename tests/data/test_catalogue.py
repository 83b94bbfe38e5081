import socket
import urllib.request

import pytest

from potara_jax.data import catalogue, prompts
from potara_jax.data.text import Example
from tests.data import raw_sets

SOURCES = {s.name: s for s in (prompts.COMMONSENSE | prompts.FLAN).values()}
FIRST = {
    "bool_q": ("0 is a number.\nis 0 even?\nAnswer:", ("no", "yes"), 1),
    "piqa": ("Goal: g0\nA. a\nB. b\nAnswer:", ("A", "B"), 0),
    "social_i_qa": ("c0\nwhy?\nA. x\nB. y\nC. z\nAnswer:", ("A", "B", "C"), 0),
    "hellaswag": ("c0 ...\nA. w\nB. x\nC. y\nD. z\nAnswer:", tuple("ABCD"), 0),
    "winogrande": ("s0 _\nWhat does _ stand for?\nA. p\nB. q\nAnswer:", ("A", "B"), 0),
    "openbookqa": (
        "Question: q0\nA. tA\nB. tB\nC. tC\nD. tD\nAnswer:",
        tuple("ABCD"),
        0,
    ),
    "cosmos_qa": (
        "c0\nQuestion: q\nA. a0\nB. a1\nC. a2\nD. a3\nAnswer:",
        tuple("ABCD"),
        0,
    ),
    "definite_pronoun_resolution": (
        'The bee0 saw the ant as it flew.\nWho or what is "it"?\n'
        "A. bee0\nB. ant\nAnswer:",
        ("A", "B"),
        0,
    ),
    "glue/qqp": (
        "First: what is 0?\nSecond: 0?\nDo they ask the same?\nAnswer:",
        ("no", "yes"),
        0,
    ),
    "glue/mnli": (
        "Premise: p0\nHypothesis: h0\nAnswer:",
        ("entailment", "neutral", "contradiction"),
        0,
    ),
    "glue/sst2": ("Review: film 0\nAnswer:", ("negative", "positive"), 0),
    "squad/v1.1": (
        "Bees make honey.\nQuestion: who makes 0?\nAnswer:",
        ("Bees",),
        0,
    ),
}
ARC = ("Question: q0\nA. t0\nB. t1\nC. t2\nD. t3\nAnswer:", tuple("ABCD"), 0)
FIRST |= {"ai2_arc/ARC-Easy": ARC, "ai2_arc/ARC-Challenge": ARC}


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_is_prepared_and_read(name, tmp_path, monkeypatch):
    given = raw_sets.TEXTS[name](tmp_path / "raw", 6)
    raw_sets.downloads(monkeypatch, given)
    for part in ("train", "test"):
        loaded = catalogue.texts(SOURCES[name], part, tmp_path / "sets")
        assert len(loaded) == 6
        assert Example(*FIRST[name]) in loaded
        golds = {example.gold for example in loaded}
        assert golds == set(range(len(FIRST[name][1])))


@pytest.mark.parametrize(
    ("name", "labels", "classes"), [("cifar100", 2, 100), ("cifar10", 1, 10)]
)
def test_images_are_those_of_the_binary_files(
    name, labels, classes, tmp_path, monkeypatch
):
    path, held = raw_sets.cifar(tmp_path, 5, labels=labels, classes=classes)
    raw_sets.downloads(monkeypatch, path)
    loaded = catalogue.images(name, "test", tmp_path / "sets")
    rows = next(rows for file, rows in held.items() if file.startswith("test"))
    expected = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    of = {
        image.tobytes(): label
        for image, label in zip(expected, rows[:, labels - 1], strict=True)
    }
    assert [of[image.tobytes()] for image in loaded.images] == loaded.labels.tolist()
    assert (
        len(catalogue.images(name, "train", tmp_path / "sets").labels)
        == 5 * len(held) - 5
    )


def test_a_missing_data_set_is_named_in_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, urls):
        raise OSError("no network\nat all")

    monkeypatch.setattr(catalogue, "check_network", lambda: None)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", fail)
    with pytest.raises(ValueError, match="data set bool_q is not in") as error:
        catalogue.texts(SOURCES["bool_q"], "train", tmp_path)
    message = str(error.value)
    assert "(no network at all)" in message
    assert f"copy {tmp_path / 'bool_q'} here" in message
    assert "\n" not in message and "delete" not in message


def test_without_a_network_nothing_is_tried(tmp_path, monkeypatch):
    def unknown(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(ValueError, match=r"\(no network: \S+ is not found\)"):
        catalogue.texts(SOURCES["bool_q"], "train", tmp_path)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "a:1"})
    catalogue.check_network()


def test_other_data_sets_of_a_folder_are_not_to_be_deleted(tmp_path, monkeypatch):
    raw_sets.downloads(monkeypatch, raw_sets.TEXTS["glue/sst2"](tmp_path / "raw", 6))
    catalogue.texts(SOURCES["glue/sst2"], "train", tmp_path)
    raw_sets.downloads(monkeypatch, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data set glue/qqp is not in") as error:
        catalogue.texts(SOURCES["glue/qqp"], "train", tmp_path)
    message = str(error.value)
    assert f"copy {tmp_path / 'glue' / 'qqp'} here" in message
    assert "delete" not in message


def test_a_damaged_data_set_is_named(tmp_path, monkeypatch):
    raw_sets.downloads(monkeypatch, raw_sets.TEXTS["bool_q"](tmp_path / "raw", 6))
    source = SOURCES["bool_q"]
    catalogue.texts(source, "train", tmp_path)
    for path in (tmp_path / "bool_q").rglob("*-train.array_record*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"bool_q is damaged .*delete it"):
        catalogue.texts(source, "train", tmp_path)
    (next((tmp_path / "bool_q").glob("*")) / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"bool_q is not in .*; delete \S*bool_q, wh"):
        catalogue.texts(source, "train", tmp_path)
