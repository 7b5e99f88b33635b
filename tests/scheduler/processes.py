"""Schedulers as processes that a test starts: killed, frozen, thawed, and read by what they log."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config import RoomSettings
from suite import processes
from tests.scheduler.conftest import Rooms

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Schedulers:
    """The processes, and their environment."""

    environment: dict[str, str]
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, **changes: str | None) -> subprocess.Popen[bytes]:
        """Start one; None takes a variable away."""
        environment = {
            name: value for name, value in (self.environment | changes).items() if value is not None
        }
        with (self.folder / f"log.{len(self.started)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.scheduler"],
                cwd=ROOT,
                env=environment,
                stderr=log,
                preexec_fn=processes.die_with_parent(signal.SIGKILL),
            )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """Everything that it has logged."""
        return (self.folder / f"log.{self.started.index(process)}").read_text()

    def logged(self, process: subprocess.Popen[bytes], event: str) -> list[dict[str, Any]]:
        """Its lines of one kind."""
        # The last line may be written just now.
        lines = [json.loads(line) for line in self.said(process).splitlines() if line.endswith("}")]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def schedulers(
    database: Any, settings: RoomSettings, rooms: Rooms, engine: AsyncEngine, tmp_path: Path
) -> Iterator[Schedulers]:
    """A way to start schedulers that call the test's rooms."""
    schedulers = Schedulers(
        {
            "PATH": os.environ["PATH"],
            "SCHEDULER_DATABASE_URL": database.url("scheduler_rw"),
            "SCHEDULER_LISTEN": "127.0.0.1:0",
            "LEDGER_ADDRESS": rooms.address,
            "SUBSCRIPTIONS_ADDRESS": rooms.address,
            "WEBHOOKS_ADDRESS": rooms.address,
            "GATEWAY_SECRET": settings.gateway_secret.get_secret_value(),
            "OPERATOR_SECRET": settings.operator_secret.get_secret_value(),
            "ROOM_SECRET": settings.room_secret.get_secret_value(),
        },
        tmp_path,
    )
    yield schedulers
    for process in schedulers.started:
        process.kill()
        process.wait()


async def until(condition: Any, *, seconds: float = 15) -> None:
    """Wait until something holds."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen in time"
        await asyncio.sleep(0.05)
