"""Numbers, names and metrics as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

MISSING = "–"  # noqa: RUF001
DIVERGED = "diverged"  # in the place of a score that is not finite
_LABELS = {
    "tasks": "one task or transformation per client",
    "natural": "the clients' own data",
}


class Metric(NamedTuple):
    """What a score measures.

    Scores are higher for better models, so a loss is recorded as minus itself, and
    shown as it is.
    """

    name: str = "accuracy"
    percent: bool = True

    @property
    def is_loss(self) -> bool:
        """Whether lower values are better."""
        return self.name == "loss"

    @property
    def column(self) -> str:
        """The head of a column: `Accuracy %` or `Loss`."""
        return self.name.capitalize() + " %" * self.percent

    @property
    def axis(self) -> str:
        """The name of an axis: `accuracy [%]` or `loss`."""
        return self.name + " [%]" * self.percent

    @property
    def points(self) -> str:
        """What follows a difference: ` points`, or nothing for a loss."""
        return " points" * self.percent

    @property
    def scale(self) -> float:
        """From differences of scores to those that are shown."""
        return 100.0 if self.percent else 1.0

    def shown(self, score: Any) -> Any:
        """Scores, a number or an array, as they are shown and plotted."""
        return (-1 if self.is_loss else 1) * self.scale * score

    def text(self, score: float) -> str:
        """A score: `86.1`, or `0.312` for a loss; `diverged` if it is not finite."""
        if not math.isfinite(score):
            return DIVERGED
        value = self.shown(score)
        return f"{value:.1f}" if self.percent else significant(value)

    def quantity(self, score: float) -> str:
        """A score with its unit, for a sentence: `86.1 %` or `0.312`."""
        unit = " %" * (self.percent and math.isfinite(score))
        return self.text(score) + unit

    def phrase(self, score: float) -> str:
        """What a method reaches: `86.1 %` or `a loss of 0.312`."""
        named = self.percent or not math.isfinite(score)
        kind = "" if named else f"a {self.name} of "
        return kind + self.quantity(score)

    def deviation(self, value: float) -> str:
        """A spread of scores."""
        if not math.isfinite(value):
            return MISSING
        return f"{self.scale * value:.1f}" if self.percent else significant(value, 2)

    def difference(self, value: float) -> str:
        """A difference of scores with its sign; above zero is better."""
        if not math.isfinite(value):
            return MISSING
        text = f"{self.scale * value:+z.1f}" if self.percent else signed(value)
        return text.replace("-", "−")  # noqa: RUF001


def metric_of(results: Mapping[str, Any]) -> Metric:
    """The metric of `results.json`: accuracy, unless it names another."""
    return Metric(**results.get("metric", {}))


def made_with(results: Mapping[str, Any]) -> dict[str, str]:
    """The versions of the software, the device, and the most memory that was used."""
    used = results.get("memory", {})
    most = {f"memory of the {name}": size(value) for name, value in used.items()}
    return {**results["versions"], **most}


def label(heterogeneity: str) -> str:
    """A heterogeneity's name: `0.1` is a Dirichlet concentration."""
    if heterogeneity in _LABELS:
        return _LABELS[heterogeneity]
    if heterogeneity.startswith("shards"):
        return f"{heterogeneity.removeprefix('shards')} shards per client"
    try:
        return f"Dirichlet {float(heterogeneity):g}"
    except ValueError:
        return heterogeneity


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * fraction:.1f}"


def significant(number: float, digits: int = 3) -> str:
    """A number with some significant digits."""
    size = abs(number)
    if not math.isfinite(size) or size < 1e-4 or size >= 1e6:
        return f"{number:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{number:,.{decimals}f}"


def signed(number: float) -> str:
    """`significant` with a sign; zero is not negative."""
    return ("-" if number < 0 else "+") + significant(abs(number))


def size(number: float) -> str:
    """A number of bytes in decimal units, with three digits."""
    units = ["GB", "MB", "kB", "B"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop()
    return f"{float(f'{number:.3g}'):g} {units[-1]}"
