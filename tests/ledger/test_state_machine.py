"""The ledger against a second opinion: random programs over its doors, compared with the model after every step."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from shared import clock
from tests.faults import soaking
from tests.ledger.conftest import SECRETS, RunningLedger
from tests.ledger.model.talk import Doors, Talk
from tests.ledger.model.usage import UsageMachine

EXAMPLES, STEPS = 16, 40


@pytest.fixture
def doors(ledger: RunningLedger) -> Doors:
    return Doors(ledger.service, ledger.funding, ledger.admin, ledger.maintenance, SECRETS["gateway_secret"])


@pytest.fixture
def clock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "clock"
    clock.move_to(file, timedelta())
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(file))
    return file


async def run_programs(doors: Doors, clock_file: Path, chosen: settings, seed: int) -> None:
    """Hypothesis runs in a thread of its own; what it asks runs in the loop that serves the ledger."""
    talk = Talk(doors, asyncio.get_running_loop())

    @seeded(seed)
    class Machine(UsageMachine):
        def __init__(self) -> None:
            super().__init__(talk, f"machine_{secrets.token_hex(6)}", clock_file)

    try:
        await asyncio.to_thread(run_state_machine_as_test, Machine, settings=chosen)
    except BaseException as error:
        if talk.failures:
            pytest.fail(
                f"seed {seed}, the first failure:\n{talk.failures[0]}\n\nand hypothesis: {error!r:.300}"
            )
        raise


def programs(examples: int, steps: int) -> settings:
    """A failing program is told as it was; SHRINK=1 looks for the shortest, which takes a while."""
    return settings(
        max_examples=examples,
        phases=(Phase.generate, Phase.shrink) if os.environ.get("SHRINK") else (Phase.generate,),
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


async def test_random_programs_do_what_the_contract_says(doors: Doors, clock_file: Path) -> None:
    await run_programs(doors, clock_file, programs(EXAMPLES, STEPS), seed=20_261_123)


@pytest.mark.soak
@pytest.mark.timeout(soaking.SECONDS + 300)
async def test_random_programs_for_as_long_as_asked(doors: Doors, clock_file: Path) -> None:
    rng = random.Random(soaking.any_seed())
    ends_at, rounds = time.monotonic() + soaking.SECONDS, 0
    while time.monotonic() < ends_at:
        await run_programs(doors, clock_file, programs(50, 80), seed=rng.randrange(10**9))
        rounds += 1
    assert rounds
