"""What is made of measurements: medians, percentiles, ratios, and the file that keeps them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    if not sorted_values:
        raise ValueError("nothing was measured")
    position = -(-len(sorted_values) * share // 1)  # rounded up
    return sorted_values[max(0, int(position) - 1)]


@dataclass
class Rate:
    """One thing measured in every round."""

    name: str
    unit: str = "debits/s"
    rounds: list[float] = field(default_factory=list)
    note: str = ""  # why there is no figure

    @property
    def median(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "median": rounded(self.median),
            "min": rounded(min(self.rounds, default=None)),
            "max": rounded(max(self.rounds, default=None)),
            "unit": self.unit,
        }


@dataclass(frozen=True)
class Ratio:
    """Two medians of one run, and what their quotient should be."""

    name: str
    value: float | None
    goal: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def wish(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.goal:g}"

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "value": rounded(self.value), "goal": self.goal, "met": self.met}


def ratio(name: str, above: Rate, below: Rate, goal: float, *, at_least: bool = True) -> Ratio:
    """The quotient of two medians; without a value where either was not measured."""
    if above.median is None or not below.median:
        return Ratio(name, None, goal, at_least)
    return Ratio(name, above.median / below.median, goal, at_least)


def report(machine: str, ratios: Iterable[Ratio], rates: Iterable[Rate]) -> dict[str, object]:
    """The content of `results/latest.json`."""
    return {
        "machine": machine,
        "ratios": [each.as_json() for each in ratios],
        "rates": [each.as_json() for each in rates],
    }


def rounded(value: float | None) -> float | None:
    """Three digits say all that a benchmark knows."""
    return None if value is None else float(f"{value:.3g}") if abs(value) < 1000 else round(value)
