"""One process of the suite: its log with its name, started again when it dies, stopped within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from suite.processes import die_with_parent

BACKOFF_SECONDS = 0.2
BACKOFF_SECONDS_MAX = 5.0
STEADY_SECONDS = 10.0
STOP_SECONDS_MAX = 5.0
LAST_LINES_SECONDS = 1.0
LINE_BYTES_MAX = 64 * 1024

Say = Callable[[str, str], None]


class Child:
    """A program that is kept running until `stop`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        say: Say,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.deaths = 0  # since it last ran steadily
        self._command = [sys.executable, "-m", *arguments]
        self._environment = environment
        self._say = say
        self._on_start = on_start
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def keep_running(self) -> None:
        """Returns after `stop` only."""
        while not self._stopping.is_set():
            began = time.monotonic()
            self._process = await self._spawn()
            if self._stopping.is_set():
                await self.stop()
                break
            self._on_start()
            status = await self._follow(self._process)
            if self._stopping.is_set():
                break
            self.deaths = 1 if time.monotonic() - began > STEADY_SECONDS else self.deaths + 1
            pause_seconds = min(BACKOFF_SECONDS * 2 ** (self.deaths - 1), BACKOFF_SECONDS_MAX)
            self._say(
                "suite", f"{self.name} {_how_it_ended(status)}; starting it again in {pause_seconds:.1f} s"
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_seconds)

    async def run_once(self) -> int:
        """Its exit status, for a program that ends by itself."""
        self._process = await self._spawn()
        return await self._follow(self._process)

    async def stop(self) -> None:
        """SIGTERM lets it finish its work; after some seconds SIGKILL ends it and whatever it started."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            self._say("suite", f"{self.name} did not stop in {STOP_SECONDS_MAX:.0f} s and is killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(self._environment),
            start_new_session=True,  # Ctrl-C reaches only the launcher, which stops the others in order
            preexec_fn=die_with_parent(signal.SIGTERM),
        )

    async def _follow(self, process: asyncio.subprocess.Process) -> int:
        relay = asyncio.ensure_future(self._relay_output(process))
        try:
            status = await process.wait()
            # What it started may hold the pipe open for ever; its own last lines come at once.
            await asyncio.wait({relay}, timeout=LAST_LINES_SECONDS)
        finally:
            relay.cancel()
        return status

    async def _relay_output(self, process: asyncio.subprocess.Process) -> None:
        output = process.stdout
        if output is None:
            return
        rest = b""
        while chunk := await output.read(LINE_BYTES_MAX):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._say(self.name, line.decode(errors="replace"))
        if rest:
            self._say(self.name, rest.decode(errors="replace"))


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
