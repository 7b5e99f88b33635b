"""When spikes and silence deserve a person: once for each of them, until it is over."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.webhooks.rules import health
from services.webhooks.rules.health import BusinessHours, Failure, Spike
from tests.webhooks.harness import room_settings

MONDAY_NOON = datetime(2026, 11, 23, 6, 30, tzinfo=UTC)  # 12:00 in India
HOURS = BusinessHours(time(10), time(19), frozenset(range(5)))
HALF_AN_HOUR = timedelta(minutes=30)


def silent(now: datetime, last: datetime | None, hours: BusinessHours = HOURS) -> bool:
    alerts = health.silence(now, last, hours, HALF_AN_HOUR)
    assert all((alert.key, alert.severity) == ("webhooks.silence", "warning") for alert in alerts)
    return len(alerts) == 1


@pytest.mark.parametrize(
    ("now", "last", "warns"),
    [
        (MONDAY_NOON, MONDAY_NOON - timedelta(minutes=31), True),
        (MONDAY_NOON, MONDAY_NOON - timedelta(minutes=30), True),
        (MONDAY_NOON, MONDAY_NOON - timedelta(minutes=29), False),
        (MONDAY_NOON, MONDAY_NOON + timedelta(days=30), False),  # a clock that was ahead
        (MONDAY_NOON, None, False),
        (MONDAY_NOON - timedelta(minutes=91), MONDAY_NOON - timedelta(hours=41), False),  # Saturday to 10:29
        (MONDAY_NOON - timedelta(minutes=90), MONDAY_NOON - timedelta(hours=41), True),  # to 10:30
        (
            MONDAY_NOON + timedelta(hours=7),
            MONDAY_NOON + timedelta(hours=6, minutes=31),
            False,
        ),  # 18:31 to 19:00
        (MONDAY_NOON + timedelta(hours=21), MONDAY_NOON + timedelta(hours=6, minutes=31), False),  # to 9:00
        (MONDAY_NOON - timedelta(days=1), MONDAY_NOON - timedelta(days=2), False),  # the weekend
    ],
)
def test_silence_is_heard_in_business_hours_only(now: datetime, last: datetime | None, warns: bool) -> None:
    assert silent(now, last) is warns


def test_one_silence_is_one_warning_through_the_night_and_the_weekend() -> None:
    """Looked at every five minutes from Friday noon to Tuesday: it begins once, and an event alone ends it."""
    friday = MONDAY_NOON - timedelta(days=3)
    moments = [friday + timedelta(minutes=5) * step for step in range(4 * 288)]
    heard = [silent(now, friday) for now in moments]

    assert heard.index(True) == 6
    assert all(heard[6:])
    assert not silent(moments[-1], moments[-1] - timedelta(minutes=1))


@pytest.mark.parametrize("month", range(1, 13))
def test_business_begins_at_the_same_hour_all_year(month: int) -> None:
    day = datetime(2026, month, 1, tzinfo=UTC)
    day += timedelta(days=(1 - day.weekday()) % 7)  # a Tuesday
    opens = day + timedelta(hours=4, minutes=30)

    assert not silent(opens + timedelta(minutes=29, seconds=59), opens - timedelta(hours=12))
    assert silent(opens + HALF_AN_HOUR, opens - timedelta(hours=12))


def test_other_hours_and_days_may_be_chosen() -> None:
    sunday = MONDAY_NOON - timedelta(days=1)
    weekend = BusinessHours(time(6), time(7), frozenset({5, 6}))

    assert not silent(sunday, sunday - timedelta(hours=1), weekend)
    assert silent(sunday, sunday - timedelta(hours=6), weekend)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"webhooks_business_opens": "22:00", "webhooks_business_closes": "06:00"},
            "WEBHOOKS_BUSINESS_OPENS",
        ),
        ({"webhooks_business_opens": "19:00"}, "WEBHOOKS_BUSINESS_OPENS"),
        ({"webhooks_business_days": [1, 7]}, "0, Monday, to 6, Sunday"),
    ],
)
def test_hours_in_which_nobody_would_hear_of_a_silence_are_refused(
    secrets: Any, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        room_settings("postgresql://x", secrets, "127.0.0.1:1", **changes)


HOURLY = Spike(in_an_hour=10, in_five_minutes=10_000)


def keys(*failures: Failure, now: datetime = MONDAY_NOON, spike: Spike = HOURLY) -> list[str]:
    alerts = health.signature_spikes(failures, now, spike)
    assert all(alert.severity == "critical" for alert in alerts)
    return [alert.key.removeprefix("webhooks.signature_spike:") for alert in alerts]


def many(
    count: int, endpoint: str = "webhook", tenant: str | None = None, *, ago: float = 10.0
) -> list[Failure]:
    return [Failure(endpoint, tenant, MONDAY_NOON - timedelta(minutes=ago, seconds=n)) for n in range(count)]


def test_one_cause_is_one_alert() -> None:
    verify = "/payment/verify"
    assert keys(*many(9)) == []
    assert keys(*many(10)) == ["endpoint:webhook"]
    assert keys(*many(1000)) == ["endpoint:webhook"]
    assert keys(*many(12, verify, "t")) == ["tenant:t"]
    assert keys(*many(6, verify, "t"), *many(6, "webhook", "t")) == ["tenant:t"]
    assert keys(*many(12, verify, "t"), *many(9, verify)) == ["tenant:t"]
    assert keys(*many(12, verify, "t"), *many(11)) == ["tenant:t", "endpoint:webhook"]
    assert keys(*many(6, tenant="a"), *many(6, tenant="b")) == ["endpoint:webhook"]


def test_each_of_a_providers_addresses_has_its_own_count() -> None:
    live = [Failure("webhook", None, MONDAY_NOON - timedelta(minutes=n), "live") for n in range(10)]
    assert keys(*live, *many(9)) == ["endpoint:webhook/live"]
    assert keys(*live[:6], *many(6)) == []


def test_a_spike_is_over_an_hour_after_its_last_ten() -> None:
    failures = many(15)
    last = max(failure.created_at for failure in failures)

    assert keys(*failures, now=last + timedelta(minutes=59, seconds=59)) == ["endpoint:webhook"]
    assert keys(*failures, now=last + timedelta(hours=1)) == []
    assert keys(*many(9, ago=59.5), *many(9, ago=119.8)) == []


def test_more_than_five_in_five_minutes_are_the_same_alert_sooner() -> None:
    spike = Spike(in_an_hour=10, in_five_minutes=6)
    slow = [Failure("webhook", None, MONDAY_NOON - timedelta(minutes=n)) for n in range(9)]

    assert keys(*many(5), spike=spike) == keys(*slow, spike=spike) == []
    assert keys(*many(6), spike=spike) == ["endpoint:webhook"]
    assert keys(*many(6, tenant="t"), *many(5), spike=spike) == ["tenant:t"]
    [early] = health.signature_spikes(many(6), MONDAY_NOON, spike)
    [late] = health.signature_spikes(many(12), MONDAY_NOON, spike)
    assert early.title == "Signature-failure spike on webhook: 6 in five minutes"
    assert late.title == "Signature-failure spike on webhook: 12 in an hour"


def test_an_attack_at_the_thresholds_own_pace_is_one_alert() -> None:
    """One failure every six minutes: the last hour has ten, then nine, then ten again."""
    began = MONDAY_NOON
    failures = [Failure("webhook", None, began + timedelta(minutes=6) * n) for n in range(60)]
    heard = []
    for step in range(70):
        now = began + timedelta(minutes=5, seconds=1) * step
        seen = [each for each in failures if now - 2 * health.HOUR < each.created_at <= now]
        heard.append(bool(keys(*seen, now=now)))

    first = heard.index(True)
    assert all(heard[first:])
    assert 9 <= first <= 12


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 7200)), max_size=60),
    st.integers(1, 12),
)
def test_a_spike_is_as_many_in_some_hour(told: list[tuple[str | None, int]], threshold: int) -> None:
    failures = [Failure("webhook", tenant, MONDAY_NOON - timedelta(seconds=ago)) for tenant, ago in told]

    spike = Spike(threshold, 10_000)
    spiking = {alert.tenant_id for alert in health.signature_spikes(failures, MONDAY_NOON, spike)} - {None}

    for tenant in ("a", "b"):
        agos = [ago for of, ago in told if of == tenant]
        expected = any(
            ago < 3600 and sum(ago <= other < ago + 3600 for other in agos) >= threshold for ago in agos
        )
        assert (tenant in spiking) is expected
