"""Results that are small enough to check by hand."""

from potara_jax.reports.summary import PARENTS


def record(method, seed, mean, *, weights=None, oracle=False, heterogeneity="0.1"):
    return {
        "method": method,
        "oracle": oracle,
        "heterogeneity": heterogeneity,
        "seed": seed,
        "mean": mean,
        "worst_decile": mean - 0.2,
        "accuracy": [mean - 0.1, mean + 0.1],
        "loss": [1.0, 0.5],
        "weights": weights,
        "bytes_up": 1000,
        "bytes_down": 2000 + 1000 * seed,
        "local_steps": 40,
        "inference_parameters": 64,
        "seconds": 2.0 + seed,
    }


def by_hand():
    """Two seeds: federated is the better parent in the first, local in the second."""
    modules = {"q": [0.2, 0.4], "v": [0.4, 0.6]}
    methods = [
        *(record(PARENTS[0], 0, 0.80), record(PARENTS[0], 1, 0.60)),
        *(record(PARENTS[1], 0, 0.70), record(PARENTS[1], 1, 0.75)),
        record("potara core", 0, 0.90, weights=modules),
        record("potara core", 1, 0.76, weights=[0.5, 0.7]),
        *(
            record("oracle", 0, 0.95, oracle=True),
            record("oracle", 1, 0.95, oracle=True),
        ),
    ]
    diagnostics = [
        {"heterogeneity": "0.1", "seed": seed, "counts": [10 + seed, 20]}
        for seed in (0, 1)
    ]
    return {"methods": methods, "diagnostics": diagnostics}
