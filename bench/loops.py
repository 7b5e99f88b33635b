"""How load is offered: a fixed number of callers, or arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from bench.figures import percentile

# Runs one call and answers how many operations it acknowledged; a refusal is raised.
Call = Callable[[], Awaitable[int]]
CALLERS = 64
# A refused caller waits a little before it asks again, as the contract tells it to.
PAUSE_SECONDS = 0.02


async def closed(
    call: Call, *, warm_seconds: float, seconds: float, callers: int = CALLERS
) -> dict[str, Any]:
    """`callers` that each ask again once answered, until nothing is open.

    The rate is all that was acknowledged over all the time it took: large batches, which end together, would fall into
    a window or beside it.
    """
    began_at = time.perf_counter()
    opens_at = began_at + warm_seconds
    closes_at = opens_at + seconds
    total = 0
    latencies: list[float] = []
    refusals: Counter[str] = Counter()

    async def caller() -> None:
        nonlocal total
        while (asked_at := time.perf_counter()) < closes_at:
            try:
                done = await call()
            except Exception as error:
                refusals[_name(error)] += 1
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))
                continue
            ended_at = time.perf_counter()
            total += done
            if opens_at <= asked_at:
                latencies.append(ended_at - asked_at)

    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = time.perf_counter() - began_at
    return {"rate": total / elapsed, "acknowledged": total, "refusals": refusals, **_spread(latencies)}


async def counted(call: Call, *, count: int, callers: int) -> int:
    """Exactly `count` answered calls by `callers`. A server that is behind is asked again; other refusals are raised."""
    left = count
    done = 0

    async def caller() -> None:
        nonlocal left, done
        while left:
            left -= 1
            try:
                acknowledged = await call()
            except Exception as error:
                if _name(error) != "RESOURCE_EXHAUSTED":
                    raise
                left += 1
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                done += acknowledged

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done


async def open_(
    call: Call, *, rate: float, seconds: float, seed: int, warm_seconds: float = 1.0
) -> dict[str, Any]:
    """Poisson arrivals at `rate`. A latency counts from the moment at which the call was due, sent late or not."""
    dice = random.Random(seed)
    latencies: list[float] = []
    refusals: Counter[str] = Counter()
    running: set[asyncio.Task[None]] = set()
    total = 0
    began_at = time.perf_counter()

    async def one(due_at: float) -> None:
        nonlocal total
        try:
            acknowledged = await call()
        except Exception as error:
            refusals[_name(error)] += 1
        else:
            total += acknowledged
            if due_at >= began_at + warm_seconds:
                latencies.append(time.perf_counter() - due_at)

    due_at = began_at
    while (due_at := due_at + dice.expovariate(rate)) < began_at + warm_seconds + seconds:
        if (early := due_at - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(one(due_at))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return {
        "rate": len(latencies) / seconds,
        "acknowledged": total,
        "refusals": refusals,
        **_spread(latencies),
    }


def _spread(latencies: list[float]) -> dict[str, float]:
    if not latencies:
        return {}
    latencies.sort()
    return {
        "p50_ms": percentile(latencies, 0.50) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "max_ms": latencies[-1] * 1000,
    }


def _name(error: Exception) -> str:
    code = getattr(error, "code", None)
    return code().name if callable(code) else f"{type(error).__name__}: {error}"
