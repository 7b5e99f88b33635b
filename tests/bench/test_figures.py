"""What the benchmark makes of its measurements."""

import json

import pytest

from bench.figures import Rate, Ratio, percentile, ratio, report


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile(list(range(1, 101)), share) == expected


def test_nothing_measured_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.99)


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(4.0, True, True), (3.99, True, False), (4.0, False, True), (4.01, False, False), (None, True, False)],
)
def test_a_goal_is_met_from_its_own_side(value: float | None, at_least: bool, met: bool) -> None:
    assert Ratio("any", value, 4, at_least).met is met


def test_a_ratio_divides_medians_not_means() -> None:
    above, below = Rate("above", rounds=[1000, 40, 30]), Rate("below", rounds=[10, 1, 100])

    assert ratio("any", above, below, 4).value == 4


def test_what_was_not_measured_has_no_ratio() -> None:
    assert ratio("any", Rate("above", note="not served"), Rate("below", rounds=[10]), 4).value is None


def test_the_report_is_plain_json() -> None:
    rates = [Rate("a", rounds=[3.14159, 2, 1234567.8]), Rate("b", note="not served")]

    content = json.loads(json.dumps(report("two CPUs", [Ratio("r", 0.98765, 1.1, False)], rates)))

    assert content == {
        "machine": "two CPUs",
        "ratios": [{"name": "r", "value": 0.988, "goal": 1.1, "met": True}],
        "rates": [
            {"name": "a", "median": 3.14, "min": 2, "max": 1234568, "unit": "debits/s"},
            {"name": "b", "median": None, "min": None, "max": None, "unit": "debits/s"},
        ],
    }
