"""What limits allow and what counting does to them: the rules alone, without a database."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger import errors
from services.ledger.rules import limits
from services.ledger.rules.limits import HARD, SOFT, USED_MAX, Limit, LimitState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
DAY = 86_400


def state(
    used: int = 0,
    value: int | None = 10,
    *,
    key: str = "blog.posts",
    kind: str = HARD,
    grace: int = 0,
    opened: datetime | None = None,
    enabled: bool = True,
) -> LimitState:
    limit = Limit(key.partition(".")[2], value, kind, grace, addon="blog_posts")
    return LimitState(key, enabled, limit, used, used > 0, opened, entitlements_version=3)


def states(*each: LimitState) -> dict[str, LimitState]:
    return {one.limit_key: one for one in each}


@pytest.mark.parametrize(
    ("before", "requested", "allowed", "reason", "remaining"),
    [
        (state(9), 1, True, limits.WITHIN_LIMIT, 1),
        (state(10), 1, False, limits.PLAN_LIMIT_REACHED, 0),
        (state(10), 0, True, limits.WITHIN_LIMIT, 0),
        (state(40), 0, False, limits.PLAN_LIMIT_REACHED, 0),
        (state(0, 0), 1, False, limits.PLAN_LIMIT_REACHED, 0),
        (state(10, kind=SOFT), 1, True, limits.SOFT_LIMIT_EXCEEDED, 0),
        (state(9, kind=SOFT), 1, True, limits.WITHIN_LIMIT, 1),
        (state(10**15, None), 10**12, True, limits.UNLIMITED, None),
        (state(10, grace=DAY), 1, True, limits.GRACE_PERIOD, 0),
        (state(10, grace=DAY, opened=NOW + TICK), 1, True, limits.GRACE_PERIOD, 0),
        (state(10, grace=DAY, opened=NOW), 1, False, limits.PLAN_LIMIT_REACHED, 0),
        (state(9, grace=DAY, opened=NOW), 1, True, limits.WITHIN_LIMIT, 1),
        (state(10, grace=0, opened=NOW + TICK), 1, True, limits.GRACE_PERIOD, 0),
        (state(10, kind=SOFT, grace=DAY, opened=NOW), 1, True, limits.SOFT_LIMIT_EXCEEDED, 0),
        (state(0, enabled=False), 0, False, limits.SERVICE_DISABLED, 10),
        (state(10, grace=DAY, enabled=False), 1, False, limits.SERVICE_DISABLED, 0),
        (state(0, None, enabled=False), 1, False, limits.SERVICE_DISABLED, None),
        (state(USED_MAX, None), 1, False, limits.PLAN_LIMIT_REACHED, None),
        (state(USED_MAX - 1, None), 1, True, limits.UNLIMITED, None),
        (state(USED_MAX, kind=SOFT), 1, False, limits.PLAN_LIMIT_REACHED, 0),
        (state(USED_MAX, grace=DAY), 1, False, limits.PLAN_LIMIT_REACHED, 0),
        (state(USED_MAX, USED_MAX), 1, False, limits.PLAN_LIMIT_REACHED, 0),
    ],
)
def test_a_decision(
    before: LimitState, requested: int, allowed: bool, reason: str, remaining: int | None
) -> None:
    decision = limits.decide(before, requested, NOW)

    assert (decision.allowed, decision.reason, decision.remaining) == (allowed, reason, remaining)
    assert (decision.used, decision.requested) == (before.used, requested)


def test_the_callers_own_count_takes_the_place_of_ours() -> None:
    decision = limits.decide(state(10), 1, NOW, current_usage=3)

    assert (decision.allowed, decision.used, decision.remaining) == (True, 3, 7)


@pytest.mark.parametrize(
    ("opened", "told"), [(None, None), (NOW, None), (NOW + TICK, NOW + TICK)], ids=["never", "over", "open"]
)
def test_a_decision_tells_the_end_of_an_open_grace_period_only(
    opened: datetime | None, told: datetime | None
) -> None:
    assert limits.decide(state(10, grace=DAY, opened=opened), 1, NOW).grace_expires_at == told


@pytest.mark.parametrize(
    ("before", "amount", "used", "reason"),
    [
        (state(9), 1, 10, limits.WITHIN_LIMIT),
        (state(9, kind=SOFT), 3, 12, limits.SOFT_LIMIT_EXCEEDED),
        (state(9, None), 10**12, 10**12 + 9, limits.UNLIMITED),
        (state(10, grace=DAY, opened=NOW + TICK), 1, 11, limits.GRACE_PERIOD),
    ],
)
def test_what_is_allowed_is_counted(before: LimitState, amount: int, used: int, reason: str) -> None:
    counted = limits.consume(states(before), [("blog.posts", amount)], NOW)

    (decision,) = counted.decisions
    assert counted.refused is None
    assert (decision.allowed, decision.used, decision.reason) == (True, used, reason)
    assert counted.changed == (replace(before, used=used, counted=True),)


@pytest.mark.parametrize(
    "before",
    [state(9), state(9, grace=DAY, opened=NOW), state(0, enabled=False), state(USED_MAX - 1, None)],
    ids=["hard", "grace over", "disabled", "end of the numbers"],
)
def test_what_is_refused_changes_nothing(before: LimitState) -> None:
    counted = limits.consume(states(before), [("blog.posts", 2)], NOW)

    assert counted.changed == ()
    assert counted.refused == limits.decide(before, 2, NOW)
    assert counted.decisions == (counted.refused,)


def test_several_limits_are_all_or_nothing_and_each_says_its_part() -> None:
    known = states(state(3), state(10, key="blog.authors"), state(1, key="media.storage_mb", enabled=False))

    counted = limits.consume(known, [("blog.posts", 1), ("blog.authors", 1), ("media.storage_mb", 1)], NOW)

    assert [each.reason for each in counted.decisions] == [
        limits.WITHIN_LIMIT,
        limits.PLAN_LIMIT_REACHED,
        limits.SERVICE_DISABLED,
    ]
    assert counted.refused is counted.decisions[1]
    assert counted.changed == ()
    assert [each.used for each in counted.decisions] == [3, 10, 1]


def test_several_limits_that_all_allow_are_all_counted() -> None:
    known = states(state(3), state(9, key="blog.authors"), state(0, key="blog.unasked"))

    counted = limits.consume(known, [("blog.authors", 1), ("blog.posts", 2)], NOW)

    assert [(each.limit_key, each.used) for each in counted.decisions] == [
        ("blog.authors", 10),
        ("blog.posts", 5),
    ]
    assert {each.limit_key: each.used for each in counted.changed} == {"blog.authors": 10, "blog.posts": 5}


def test_a_limit_named_twice_is_asked_for_the_sum() -> None:
    twice = [("blog.posts", 1), ("blog.posts", 1)]

    refused = limits.consume(states(state(9)), twice, NOW)
    counted = limits.consume(states(state(8)), twice, NOW)

    assert [each.allowed for each in refused.decisions] == [True, False]
    assert refused.changed == ()
    assert [each.used for each in counted.decisions] == [10, 10]
    assert [each.used for each in counted.changed] == [10]


def test_the_first_excess_begins_the_grace_period_once() -> None:
    first = limits.consume(states(state(10, grace=DAY)), [("blog.posts", 1)], NOW)
    (opened,) = first.changed
    ends_at = NOW + timedelta(days=1)
    assert (opened.used, opened.grace_expires_at) == (11, ends_at)
    assert (first.decisions[0].reason, first.decisions[0].grace_expires_at) == (limits.GRACE_PERIOD, ends_at)

    later = limits.consume(states(opened), [("blog.posts", 1)], ends_at - TICK)
    assert (later.changed[0].used, later.changed[0].grace_expires_at) == (12, ends_at)

    over = limits.consume(states(later.changed[0]), [("blog.posts", 1)], ends_at)
    assert over.refused is not None
    assert over.refused.reason == limits.PLAN_LIMIT_REACHED


def test_coming_back_below_the_limit_does_not_begin_another_grace_period() -> None:
    before = state(11, grace=DAY, opened=NOW - TICK)

    (below,) = limits.release(states(before), [("blog.posts", 5)], NOW).changed
    refused = limits.consume(states(below), [("blog.posts", 5)], NOW).refused
    set_over = limits.set_usage(states(below), "blog.posts", 20, NOW)

    assert refused is not None
    assert set_over.changed[0].grace_expires_at == NOW - TICK
    assert set_over.decisions[0].reason == limits.PLAN_LIMIT_REACHED


def test_a_refusal_of_another_limit_begins_no_grace_period() -> None:
    known = states(state(10, grace=DAY), state(10, key="blog.authors"))

    counted = limits.consume(known, [("blog.posts", 1), ("blog.authors", 1)], NOW)

    assert counted.decisions[0].reason == limits.GRACE_PERIOD
    assert counted.decisions[0].grace_expires_at is None
    assert counted.changed == ()


def test_a_plan_whose_ceiling_covers_usage_is_within_limit_whatever_the_grace() -> None:
    grown = replace(state(15, grace=DAY, opened=NOW - TICK), limit=Limit("posts", 20, HARD, DAY))

    assert limits.decide(grown, 5, NOW).reason == limits.WITHIN_LIMIT
    assert limits.decide(grown, 6, NOW).reason == limits.PLAN_LIMIT_REACHED


@pytest.mark.parametrize(
    ("before", "used", "reason", "opens"),
    [
        (state(3), 10, limits.WITHIN_LIMIT, False),
        (state(3), 11, limits.PLAN_LIMIT_REACHED, False),
        (state(3, grace=DAY), 10, limits.WITHIN_LIMIT, False),
        (state(3, grace=DAY), 11, limits.GRACE_PERIOD, True),
        (state(30, grace=DAY), 11, limits.GRACE_PERIOD, True),
        (state(3, kind=SOFT, grace=DAY), 11, limits.SOFT_LIMIT_EXCEEDED, False),
        (state(3, None, grace=DAY), 11, limits.UNLIMITED, False),
        (state(3, grace=DAY, enabled=False), 11, limits.SERVICE_DISABLED, False),
    ],
)
def test_usage_is_a_fact(before: LimitState, used: int, reason: str, opens: bool) -> None:
    counted = limits.set_usage(states(before), "blog.posts", used, NOW)

    (after,) = counted.changed
    assert counted.refused is None
    assert (after.used, counted.decisions[0].used, counted.decisions[0].reason) == (used, used, reason)
    assert (after.grace_expires_at is not None) == opens


def test_usage_set_to_what_it_is_changes_nothing_once_it_was_counted() -> None:
    first = limits.set_usage(states(state(0)), "blog.posts", 0, NOW)

    assert [each.used for each in first.changed] == [0]
    assert limits.set_usage(states(first.changed[0]), "blog.posts", 0, NOW).changed == ()
    assert limits.set_usage(states(state(0)), "blog.posts", USED_MAX + 1, NOW).changed[0].used == USED_MAX


def test_giving_back_ends_at_zero_and_is_never_refused() -> None:
    known = states(state(3), state(12, key="blog.authors", enabled=False), state(0, key="blog.drafts"))
    amounts = [("blog.posts", 2), ("blog.posts", 2), ("blog.authors", 1), ("blog.drafts", 5)]

    counted = limits.release(known, amounts, NOW)

    assert counted.refused is None
    assert [(each.limit_key, each.used) for each in counted.decisions] == [
        ("blog.posts", 0),
        ("blog.posts", 0),
        ("blog.authors", 11),
        ("blog.drafts", 0),
    ]
    assert {each.limit_key: each.used for each in counted.changed} == {"blog.posts": 0, "blog.authors": 11}


def test_a_limit_that_the_plan_lacks_is_unknown_unless_it_was_counted_once() -> None:
    never = replace(state(0), limit=None)
    once = replace(state(4), limit=None)
    for known in ({}, states(never), states(once)):
        with pytest.raises(errors.UnknownLimit) as refusal:
            limits.consume(known, [("blog.posts", 1)], NOW)
        assert refusal.value.metadata == {"limit_key": "blog.posts"}
    for known in ({}, states(never)):
        with pytest.raises(errors.UnknownLimit):
            limits.release(known, [("blog.posts", 1)], NOW)
        with pytest.raises(errors.UnknownLimit):
            limits.set_usage(known, "blog.posts", 1, NOW)

    assert limits.release(states(once), [("blog.posts", 1)], NOW).changed[0].used == 3
    assert limits.set_usage(states(once), "blog.posts", 9, NOW).changed[0].used == 9


def test_a_limit_of_a_disabled_service_is_known_to_be_refused() -> None:
    absent = replace(state(0, enabled=False), limit=None)

    refused = limits.consume(states(absent), [("blog.posts", 1)], NOW).refused

    assert refused is not None
    assert (refused.reason, refused.limit) == (limits.SERVICE_DISABLED, 0)
    assert limits.release(states(absent), [("blog.posts", 1)], NOW).changed == ()
    assert limits.set_usage(states(absent), "blog.posts", 2, NOW).changed[0].used == 2


def test_an_unknown_limit_comes_before_any_refusal() -> None:
    with pytest.raises(errors.UnknownLimit):
        limits.consume(states(state(10)), [("blog.posts", 1), ("blog.drafts", 1)], NOW)


def test_a_refusal_says_what_stood_in_the_way() -> None:
    reached = limits.limit_reached(limits.decide(state(9), 2, NOW))
    disabled = limits.limit_reached(limits.decide(state(9, enabled=False), 1, NOW))
    endless = limits.limit_reached(limits.decide(state(USED_MAX, None), 1, NOW))

    assert (reached.code, reached.reason) == ("FAILED_PRECONDITION", "PLAN_LIMIT_REACHED")
    assert reached.metadata == {
        "limit_key": "blog.posts",
        "limit": "10",
        "used": "9",
        "requested": "2",
        "addon": "blog_posts",
    }
    assert disabled.metadata["why"] == "service_disabled"
    assert "limit" not in endless.metadata
    assert isinstance(reached, errors.REMEMBERED)


# One act on a limit of ten: how much, and whether it is taken, given back or set.
ACTS = st.lists(st.tuples(st.sampled_from(["consume", "release"]), st.integers(1, 12)), max_size=40)


@given(acts=ACTS)
def test_never_an_eleventh_post_on_a_plan_of_ten(acts: list[tuple[str, int]]) -> None:
    current, expected = state(0), 0
    for act, amount in acts:
        count = limits.consume if act == "consume" else limits.release
        counted = count(states(current), [("blog.posts", amount)], NOW)
        if act == "release":
            expected = max(0, expected - amount)
        elif expected + amount <= 10:
            expected += amount
        else:
            assert counted.refused is not None
        current = next(iter(counted.changed), current)
        assert current.used == counted.decisions[0].used == expected
        assert 0 <= current.used <= 10


KEYS = ["blog.posts", "blog.authors", "media.files"]
LIMITS = st.builds(
    Limit,
    key=st.just("any"),
    value=st.none() | st.integers(0, 20),
    kind=st.sampled_from([HARD, SOFT]),
    grace_seconds=st.sampled_from([0, 10]),
)
ANY_STATE = st.builds(
    LimitState,
    limit_key=st.just(""),
    enabled=st.integers(0, 4).map(bool),
    limit=LIMITS,
    used=st.integers(0, 25) | st.integers(USED_MAX - 3, USED_MAX),
    counted=st.just(True),
    grace_expires_at=st.none() | st.integers(-2, 2).map(lambda seconds: NOW + timedelta(seconds=seconds)),
    entitlements_version=st.just(1),
)
KNOWN = st.tuples(*[ANY_STATE] * len(KEYS)).map(
    lambda found: {key: replace(each, limit_key=key) for key, each in zip(KEYS, found, strict=True)}
)
AMOUNTS = st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 8)), max_size=6)


@given(known=KNOWN, amounts=AMOUNTS)
def test_counting_is_all_or_nothing(known: dict[str, LimitState], amounts: Sequence[tuple[str, int]]) -> None:
    counted = limits.consume(known, amounts, NOW)

    asked: dict[str, int] = {}
    for key, amount in amounts:
        asked[key] = asked.get(key, 0) + amount
    fits = all(limits.decide(known[key], amount, NOW).allowed for key, amount in asked.items())
    assert (counted.refused is None) == fits
    assert [each.limit_key for each in counted.decisions] == [key for key, _ in amounts]
    assert {each.limit_key: each.used for each in counted.changed} == (
        {key: known[key].used + amount for key, amount in asked.items()} if fits else {}
    )
    assert all(each.used <= USED_MAX for each in counted.changed)
    assert all(each.allowed for each in counted.decisions) == fits


@given(known=KNOWN, amounts=AMOUNTS)
def test_what_was_consumed_can_be_given_back(
    known: dict[str, LimitState], amounts: Sequence[tuple[str, int]]
) -> None:
    counted = limits.consume(known, amounts, NOW)
    between = {**known, **states(*counted.changed)}
    returned = limits.release(between, amounts, NOW) if counted.refused is None else counted

    after = {**between, **states(*returned.changed)}
    assert {key: each.used for key, each in after.items()} == {key: each.used for key, each in known.items()}


@given(known=KNOWN, used=st.integers(0, 30), later=st.integers(0, 30))
def test_a_grace_period_once_begun_never_moves(known: dict[str, LimitState], used: int, later: int) -> None:
    key = KEYS[0]
    first = {**known, **states(*limits.set_usage(known, key, used, NOW).changed)}
    second = limits.consume(first, [(key, later + 1)], NOW + timedelta(seconds=3)).changed
    begun = first[key].grace_expires_at

    if known[key].grace_expires_at is not None:
        assert begun == known[key].grace_expires_at
    if begun is not None:
        assert all(each.grace_expires_at == begun for each in second)
