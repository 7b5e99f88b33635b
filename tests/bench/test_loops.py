"""How the benchmark offers load and counts it."""

import asyncio
import time

import pytest

from bench import loops


async def test_exactly_as_many_calls_are_made_as_were_ordered() -> None:
    made = 0

    async def call() -> int:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return 2

    assert await loops.counted(call, count=50, callers=8) == 100
    assert made == 50


async def test_callers_are_never_more_than_ordered_and_nothing_is_open_at_the_end() -> None:
    open_calls = most = 0

    async def call() -> int:
        nonlocal open_calls, most
        open_calls += 1
        most = max(most, open_calls)
        await asyncio.sleep(0.001)
        open_calls -= 1
        return 1

    measured = await loops.closed(call, warm_seconds=0, seconds=0.05, callers=4)

    assert (most, open_calls) == (4, 0)
    assert measured["acknowledged"] > 0
    assert measured["rate"] <= measured["acknowledged"] / 0.05


async def test_a_latency_counts_from_when_the_call_was_due() -> None:
    stalled = False

    async def call() -> int:
        nonlocal stalled
        if not stalled:
            stalled = True
            # A client that blocks sends everything after it late; callers would have waited all the same.
            time.sleep(0.3)  # noqa: ASYNC251
        return 1

    measured = await loops.open_(call, rate=200, seconds=0.5, seed=1, warm_seconds=0)

    assert measured["max_ms"] > 250
    assert measured["p50_ms"] > 50


async def test_refusals_are_counted_by_name_and_not_as_work() -> None:
    async def call() -> int:
        raise ValueError("no")

    measured = await loops.closed(call, warm_seconds=0, seconds=0.02, callers=2)

    assert measured["refusals"]["ValueError: no"] >= 2
    assert measured["acknowledged"] == 0


async def test_an_ordered_count_fails_with_its_call() -> None:
    async def call() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await loops.counted(call, count=3, callers=1)
