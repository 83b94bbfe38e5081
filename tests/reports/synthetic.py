"""Synthetic results in the form of `results.json`."""

from __future__ import annotations

import numpy as np

METHODS = (
    "base model",
    "local",
    "federated",
    "FedIT + fine-tuning",
    "FedPer",
    "average",
    "task arithmetic",
    "potara core",
    "potara factor",
    "Potara per module",
    "Hermite",
    "grid on samples",
    "oracle grid",
    "FedAMP",
    "Ditto",
    "FFA-LoRA",
)


def synthetic(
    *,
    clients: int = 20,
    heterogeneities: tuple[str, ...] = ("0.1", "tasks"),
    seeds: int = 3,
    methods: int = 13,
    classes: int = 10,
) -> dict:
    """Invented results with the shapes and ranges of real ones."""
    rng = np.random.default_rng(0)
    pairs = [(name, seed) for name in heterogeneities for seed in range(seeds)]
    return {
        "experiment": "digits",
        "settings": {
            "cells.clients": clients,
            "lora.rank": 4,
            "merging.damping": "relative",
        },
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "methods": [
            _record(rng, name, heterogeneity, seed, clients)
            for name in METHODS[:methods]
            for heterogeneity, seed in pairs
        ],
        "diagnostics": [_diagnostic(rng, *pair, clients, classes) for pair in pairs],
    }


def _record(rng, name, heterogeneity, seed, clients) -> dict:
    level = 0.75 + 0.015 * METHODS.index(name) + 0.01 * rng.normal()
    accuracy = np.clip(level + 0.1 * rng.normal(size=clients), 0, 1)
    weights = rng.uniform(0.2, 0.8, clients).tolist()
    merged = name.startswith("Potara") or name in ("Hermite", "average")
    sends = name not in ("base model", "local")
    if name == "Potara per module":
        weights = {"layer_0/q": weights, "layer_0/v": weights[::-1]}
    return {
        "method": name,
        "oracle": name.startswith("oracle"),
        "heterogeneity": heterogeneity,
        "seed": seed,
        "mean": float(accuracy.mean()),
        "worst_decile": float(np.sort(accuracy)[: max(1, clients // 10)].mean()),
        "accuracy": accuracy.tolist(),
        "loss": (-np.log(np.clip(accuracy, 0.05, 1))).tolist(),
        "weights": weights if merged else None,
        "bytes_up": 15_728_640 * sends,
        "bytes_down": 16_728_640 * sends,
        "local_steps": 400,
        "inference_parameters": 12_288 * (1 + merged),
        "seconds": float(rng.uniform(1, 30)),
    }


def _diagnostic(rng, heterogeneity, seed, clients, classes) -> dict:
    concentration = 100.0 if heterogeneity == "tasks" else float(heterogeneity)
    return {
        "heterogeneity": heterogeneity,
        "seed": seed,
        "counts": (rng.lognormal(0, 0.5, clients) * 60 + 8).astype(int).tolist(),
        "proportions": rng.dirichlet([concentration] * classes, clients).tolist(),
        "segment": _segment(rng, clients),
        "damping": _damping(rng, clients),
        "communication": _communication(rng),
        "left_out": [{"phase": "federated", "round": 3, "client": 7}],
        "seconds": {"base": 12.5, "federated": 80.25, "local": 40.0, "merge": 3.5},
    }


def _segment(rng, clients) -> dict:
    points = np.linspace(0, 1, 11)
    best = rng.uniform(0.1, 0.9, (clients, 1))
    floor = rng.lognormal(-2, 0.7, (clients, 1))
    losses = floor + rng.lognormal(0, 0.6, (clients, 1)) * (points - best) ** 2
    near = lambda noise: np.clip(best[:, 0] + noise * rng.normal(size=clients), 0, 1)
    return {
        "points": points.tolist(),
        "losses": losses.tolist(),
        "chosen": {"potara core": near(0.1).tolist(), "Hermite": near(0.05).tolist()},
        "barrier": np.abs(0.01 * rng.normal(size=clients)).tolist(),
    }


def _damping(rng, clients) -> dict:
    values = np.logspace(-4, 2, 13)
    pull = rng.normal(size=(1, clients)) / (1 + values[:, None])
    weights = lambda scale: (1 / (1 + np.exp(scale * pull - 0.3))).tolist()
    return {
        "values": values.tolist(),
        "weights": {"potara core": weights(1.5), "potara factor": weights(4.0)},
        "chosen": 0.1,
    }


def as_losses(results: dict) -> dict:
    """The same results, of a task that has only a loss."""
    for record in results["methods"]:
        losses = np.asarray(record["loss"])
        record["accuracy"] = (-losses).tolist()
        record["mean"], record["worst_decile"] = float(-losses.mean()), -losses.max()
    return results | {"metric": {"name": "loss", "percent": False}}


def _communication(rng) -> list[dict]:
    reached = lambda t, top: top - 0.5 * np.exp(-t / 6) + 0.005 * rng.normal()
    return [
        {
            "method": method,
            "round": number,
            "bytes": int(cost * number),
            "mean": float(reached(number, top)),
        }
        for method, cost, top in (
            ("federated", 1.6e6, 0.80),
            ("FFA-LoRA", 0.8e6, 0.78),
            ("potara core", 1.6e6, 0.90),
        )
        for number in (1, 5, 10, 15, 20)
    ]
