"""What a run has shown, in a sentence for each heterogeneity."""

from __future__ import annotations

from potara_jax.reports.formats import DIVERGED, Metric, label, metric_of, percent
from potara_jax.reports.summary import (
    LARGEST_CLASS,
    PARENTS,
    Results,
    Summary,
    best,
    grouped,
    summarise,
)

_UNTRAINED = ("base", LARGEST_CLASS)
_UNMERGED = (*PARENTS, *_UNTRAINED)
_LISTED = 5  # methods that a sentence names


def sentences(results: Results) -> list[str]:
    """A sentence for each heterogeneity, about `potara core` or what stands for it.

    It says so if the method does not beat both of its parents. Further sentences name
    the methods that do not beat the largest class.
    """
    metric, found = metric_of(results), []
    for group in grouped(summarise(results)).values():
        subject = _subject(group)
        if subject is not None:
            found.append(_sentence(subject, group, metric))
    return [*found, *unbeaten(summarise(results))]


def unbeaten(summaries: list[Summary]) -> list[str]:
    """A sentence for each heterogeneity where methods do not beat the largest class."""
    sentences = []
    for name, group in grouped(summaries).items():
        floors = [s.mean for s in group if s.method == LARGEST_CLASS]
        trained = [s for s in group if not s.oracle and s.method not in _UNTRAINED]
        behind = [s.method for s in trained if floors and not s.mean > floors[0]]
        if behind:
            subject = _listed(behind, len(trained))
            sentences.append(
                f"With {label(name)}, {subject} always answering with a client's "
                f"largest class ({percent(floors[0])} %)."
            )
    return sentences


def _listed(behind: list[str], number: int) -> str:
    """Methods, with a verb, and how many more they are than can be listed."""
    if len(behind) == number:
        return "no method beats"
    shown, more = behind[:_LISTED], len(behind) - _LISTED
    names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"{names} {'do' if len(behind) > 1 else 'does'} not beat"


def _subject(summaries: list[Summary]) -> Summary | None:
    """`potara core`, else the first Potara, else the best method that is no parent."""
    fair = [s for s in summaries if not s.oracle and s.method not in _UNMERGED]
    core = [s for s in fair if s.method == "potara core"]
    potara = [s for s in fair if s.method.startswith("potara")]
    return next(iter([*core, *potara, *best(fair)]), None)


def _sentence(subject: Summary, group: list[Summary], metric: Metric) -> str:
    start = f"With {label(subject.heterogeneity)}, {subject.method}"
    mean, rival = metric.phrase(subject.mean), _rival(subject, group, metric)
    if mean == DIVERGED:
        return f"{start} diverged{rival}."
    if subject.gain is None:
        return f"{start} reaches {mean}{rival}."
    means = {other.method: metric.quantity(other.mean) for other in group}
    federated, local = (means[name] for name in PARENTS)
    against = f"{mean} against {federated} federated and {local} local"
    gains = round(subject.gain, 3 if metric.percent else 6) > 0
    verb = "reaches" if gains else "does not beat both of its parents:"
    margin = _margin(subject, metric)
    return f"{start} {verb} {against}, {margin}{rival}."


def _margin(subject: Summary, metric: Metric) -> str:
    """The gain over the better parent, and whether it stands out from the seeds."""
    gain, deviation = subject.gain or 0.0, subject.gain_spread or 0.0
    difference = f"{metric.difference(gain)}{metric.points}"
    text = f"a gain of {difference} over the better parent"
    if subject.seeds == 1:
        return f"{text} (one seed, so the spread is unknown)"
    within = ", within the spread" if abs(gain) <= deviation else ""
    return (
        f"{text} (± {metric.deviation(deviation)} over {subject.seeds} seeds{within})"
    )


def _rival(subject: Summary, group: list[Summary], metric: Metric) -> str:
    """The best method that sees no test data, unless the sentence names it already."""
    others = [other for other in best(group) if other.method not in _UNMERGED]
    if not others or others[0].mean <= subject.mean:
        return ""
    top = others[0]
    score = metric.quantity(top.mean)
    return f"; the best method that sees no test data is {top.method} with {score}"
