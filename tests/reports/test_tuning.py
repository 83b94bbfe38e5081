from potara_jax.reports import document, tuning

TRIALS = [
    {"algorithm": "fedit", "trial": {"local_rate": 0.01}, "mean": 0.5},
    {"algorithm": "fedit", "trial": {"local_rate": 0.0025}, "mean": 0.75},
    {"algorithm": "pfedme", "trial": {"strength": 0.1}, "mean": 0.25},
]
RESULTS = {
    "experiment": "digits",
    "trials": TRIALS,
    "best": {"fedit": {"local_rate": 0.0025}, "pfedme": {"strength": 0.1}},
    "settings": {},
    "versions": {},
}


def test_one_row_per_trial_with_the_best_marked():
    ((rows, _),) = tuning.table(RESULTS).groups
    assert [(*row.texts, row.kind) for row in rows] == [
        ("fedit", "local_rate 0.01", "50.0", ""),
        ("fedit", "local_rate 0.0025", "75.0", "best"),
        ("pfedme", "strength 0.1", "25.0", "best"),
    ]


def test_the_report(tmp_path):
    page = document.html(tuning.report(RESULTS, tmp_path))
    assert "Held-out accuracy\u00a0%" in page
    assert page.count('<tr class="best">') == 2


def test_algorithms_whose_best_trial_is_at_an_end_are_named():
    assert tuning.at_an_end(RESULTS) == [
        "At an end of what was tried, so that a better value may lie beyond it: fedit."
    ]
    inside = {"algorithm": "fedit", "trial": {"local_rate": 0.001}, "mean": 0.1}
    assert tuning.at_an_end(RESULTS | {"trials": [*TRIALS, inside]}) == []
