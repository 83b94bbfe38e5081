"""Small data sets in the forms that their authors publish, as a download leaves them.

`TEXTS[name](folder, split, n)` writes a split's files below a folder; `answer(urls)` is
what the download manager would give.
"""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from potara_jax.data import catalogue


def lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))


def bool_q(folder, n):
    for split in ("train", "dev"):
        rows = [
            {"question": f"is {i} even", "passage": f"{i} is a number.", "title": "n",
             "answer": i % 2 == 0}
            for i in range(n)
        ]  # fmt: skip
        lines(folder / f"{split}.jsonl", rows)
    return {"train": folder / "train.jsonl", "validation": folder / "dev.jsonl"}


def piqa(folder, n):
    for split in ("train", "dev"):
        rows = [
            {"id": str(i), "goal": f"g{i}", "sol1": "a", "sol2": "b"} for i in range(n)
        ]
        base = folder / "physicaliqa-train-dev"
        lines(base / f"{split}.jsonl", rows)
        lines(base / f"{split}-labels.lst", [str(i % 2) for i in range(n)])
    return folder


def social_i_qa(folder, n):
    path = folder / "socialiqa-train-dev.zip"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "dev"):
            rows = [
                {"context": f"c{i}", "question": "why?", "answerA": "x", "answerB": "y",
                 "answerC": "z"}
                for i in range(n)
            ]  # fmt: skip
            base = "socialiqa-train-dev"
            archive.writestr(f"{base}/{split}.jsonl", "\n".join(map(json.dumps, rows)))
            archive.writestr(
                f"{base}/{split}-labels.lst",
                "\n".join(str(i % 3 + 1) for i in range(n)),
            )
    return path


def hellaswag(folder, n):
    paths = {}
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = [
            {"ctx": f"c{i}", "endings": list("wxyz"), "activity_label": "a",
             "split_type": ("indomain", "zeroshot")[i // 2 % 2],
             "source_id": ("wikihow", "activitynet")[i % 2]}
            | ({} if split == "test" else {"label": i % 4})
            for i in range(n)
        ]  # fmt: skip
        paths[split] = folder / f"hellaswag_{short}.jsonl"
        lines(paths[split], rows)
    return paths


def winogrande(folder, n):
    names = [f"train_{size}" for size in ("xs", "s", "m", "l", "xl")] + ["dev", "test"]
    for name in names:
        rows = [
            {"qID": f"{name}{i}", "sentence": f"s{i} _", "option1": "p", "option2": "q"}
            | ({} if name == "test" else {"answer": str(i % 2 + 1)})
            for i in range(n)
        ]
        lines(folder / "winogrande_1.1" / f"{name}.jsonl", rows)
    return folder


def arc(folder, n):
    for level in ("Easy", "Challenge"):
        for split in ("Train", "Dev", "Test"):
            letters = lambda i: "1234" if i % 2 else "ABCD"
            rows = [
                {"id": f"{split}{i}", "answerKey": letters(i)[i % 4], "question": {
                    "stem": f"q{i}", "choices": [
                        {"text": f"t{k}", "label": letter}
                        for k, letter in enumerate(letters(i))]}}
                for i in range(n)
            ]  # fmt: skip
            name = f"ARC-{level}"
            lines(folder / "ARC-V1-Feb2018-2" / name / f"{name}-{split}.jsonl", rows)
    return folder


def openbookqa(folder, n):
    for split in ("train", "dev", "test"):
        rows = [
            {"id": f"{split}{i}", "fact1": "f", "humanScore": 1.0, "clarity": 1.0,
             "turkIdAnonymized": "t", "answerKey": "ABCD"[i % 4], "question": {
                "stem": f"q{i}",
                "choices": [{"text": f"t{k}", "label": k} for k in "ABCD"]}}
            for i in range(n)
        ]  # fmt: skip
        base = folder / "OpenBookQA-V1-Sep2018" / "Data" / "Additional"
        lines(base / f"{split}_complete.jsonl", rows)
    return folder


def cosmos_qa(folder, n):
    columns = ["id", "context", "question", *[f"answer{k}" for k in range(4)], "label"]
    paths = {}
    for split in ("train", "validation", "test"):
        rows = [
            {"id": f"{split}{i}", "context": f"c{i}", "question": "q",
             **{f"answer{k}": f"a{k}" for k in range(4)}, "label": i % 4}
            for i in range(n)
        ]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        if split == "test":
            paths[split] = folder / "test.jsonl"
            kept = [{k: v for k, v in row.items() if k != "label"} for row in rows]
            lines(paths[split], kept)
            continue
        paths[split] = folder / f"{split}.csv"
        with paths[split].open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return paths


def pronouns(folder, n):
    paths = {}
    for split in ("train", "test"):
        rows = []
        for i in range(n):
            rows += [f"The bee{i} saw the ant as it flew.", "it", f"bee{i},ant"]
            rows += ["ant" if i % 2 else f"bee{i}", ""]
        paths[split] = folder / f"{split}.txt"
        lines(paths[split], [*rows, ""])
    return paths


def glue(header, row):
    def make(folder, n):
        base = next(iter(header))
        splits = ("train", "dev", "test")
        if base == "MNLI":
            splits = (
                "train",
                "dev_matched",
                "dev_mismatched",
                "test_matched",
                "test_mismatched",
            )
        for split in splits:
            names = [x for x in header[base] if split[:4] != "test" or x not in _LABELS]
            table = [names, *[[row(i)[x] for x in names] for i in range(n)]]
            lines(folder / base / f"{split}.tsv", ["\t".join(r) for r in table])
        return folder

    return make


_LABELS = ("label", "is_duplicate", "gold_label")
_MNLI = ("entailment", "neutral", "contradiction")
qqp = glue(
    {"QQP": ["id", "question1", "question2", "is_duplicate"]},
    lambda i: {"id": str(i), "question1": f"what is {i}?", "question2": f"{i}?",
               "is_duplicate": str(i % 2)},
)  # fmt: skip
mnli = glue(
    {"MNLI": ["sentence1", "sentence2", "gold_label"]},
    lambda i: {"sentence1": f"p{i}", "sentence2": f"h{i}", "gold_label": _MNLI[i % 3]},
)
sst2 = glue(
    {"SST-2": ["sentence", "label"]},
    lambda i: {"sentence": f"film {i}", "label": str(i % 2)},
)
_ENTAILMENT = ("entailment", "not_entailment")
qnli = glue(
    {"QNLI": ["index", "question", "sentence", "label"]},
    lambda i: {"index": str(i), "question": f"who is {i}?", "sentence": f"{i} is.",
               "label": _ENTAILMENT[i % 2]},
)  # fmt: skip
rte = glue(
    {"RTE": ["index", "sentence1", "sentence2", "label"]},
    lambda i: {"index": str(i), "sentence1": f"It is {i}.", "sentence2": f"{i}.",
               "label": _ENTAILMENT[i % 2]},
)  # fmt: skip


def cola(folder, n):
    """Only the test part names its columns."""
    for split, noun in (("train", "bee"), ("dev", "ant")):
        mark = lambda i: f"{i % 2}\t{'' if i % 2 else '*'}"
        rows = [f"gj04\t{mark(i)}\tThe {noun} is {i}." for i in range(n)]
        lines(folder / "CoLA" / f"{split}.tsv", rows)
    rows = ["index\tsentence", *[f"{i}\tThe {i} was." for i in range(n)]]
    lines(folder / "CoLA" / "test.tsv", rows)
    return folder


def mrpc(folder, n):
    """One file for training and validation, which a list of ids tells apart."""
    names = "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"
    row = lambda i: f"{i % 2}\t{i}\t{i + 1}\tThe {i} is.\tIt is the {i}."
    paths = {name: folder / f"{name}.txt" for name in ("dev_ids", "train", "test")}
    lines(paths["dev_ids"], [f"{i}\t{i + 1}" for i in range(n, 2 * n)])
    lines(paths["train"], ["\ufeff" + "\t".join(names), *map(row, range(2 * n))])
    lines(paths["test"], ["\ufeff" + "\t".join(names), *map(row, range(n))])
    return paths


def squad(folder, n):
    paths = {}
    for split in ("train", "dev"):
        text = "Bees make honey."
        questions = [
            {"id": f"{split}{i}", "question": f"who makes {i}?",
             "answers": [{"text": "Bees", "answer_start": 0}]}
            for i in range(n)
        ]  # fmt: skip
        article = {"title": "t", "paragraphs": [{"context": text, "qas": questions}]}
        paths[split] = folder / f"{split}.json"
        folder.mkdir(parents=True, exist_ok=True)
        paths[split].write_text(json.dumps({"data": [article]}))
    return paths


def trec(folder, n):
    """`n` questions a split, whose types take turns; one has a byte of no encoding."""
    kinds = "ABBR:exp", "DESC:def", "ENTY:animal", "HUM:ind", "LOC:city", "NUM:date"
    paths = {"train": folder / "train_5500.label", "test": folder / "TREC_10.label"}
    folder.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        rows = [f"{kinds[i % 6]} What is {split} {i} ?\n".encode() for i in range(n)]
        path.write_bytes(b"".join(rows).replace(b"What is train 1 ", b"What\xf0is 1 "))
    return paths


TEXTS = {
    "bool_q": bool_q,
    "piqa": piqa,
    "social_i_qa": social_i_qa,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "ai2_arc/ARC-Easy": arc,
    "ai2_arc/ARC-Challenge": arc,
    "openbookqa": openbookqa,
    "cosmos_qa": cosmos_qa,
    "definite_pronoun_resolution": pronouns,
    "glue/qqp": qqp,
    "glue/mnli": mnli,
    "glue/sst2": sst2,
    "glue/qnli": qnli,
    "glue/rte": rte,
    "glue/cola": cola,
    "glue/mrpc": mrpc,
    "squad/v1.1": squad,
    "trec": trec,
}


def cifar(folder, n, *, labels=2, classes=100):
    """The archive of a CIFAR's binary version, and its images and labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
    names = ["train.bin", "test.bin"] if labels == 2 else [*batches, "test_batch.bin"]
    path, held = folder / "cifar.tar.gz", {}
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            rows = rng.integers(0, 256, (n, labels + 3072), np.uint8)
            rows[:, labels - 1] %= classes
            held[name] = rows
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = rows.nbytes
            archive.addfile(member, io.BytesIO(rows.tobytes()))
    return path, held


def downloads(monkeypatch, given):
    """Let every download give `given`, in the form that a builder asks for."""
    import tensorflow_datasets as tfds
    from etils import epath

    monkeypatch.setattr(catalogue, "check_network", lambda: None)
    wrap = lambda x: (
        {k: wrap(v) for k, v in x.items()} if isinstance(x, dict) else epath.Path(x)
    )
    manager = tfds.download.DownloadManager
    for name in ("download", "download_and_extract"):
        monkeypatch.setattr(manager, name, lambda self, urls: wrap(given))
