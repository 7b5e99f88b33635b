"""Runs the whole suite on one machine: Postgres, the rooms and the sandbox, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from suite import addresses
from suite.child import STOP_SECONDS_MAX, Child
from suite.console import Console
from suite.database import Database
from suite.files import DataFolder, Runtime, Secrets
from suite.migrate import LOGINS, migrate
from suite.processes import ProcessNote
from suite.readiness import Door, GrpcDoor, HttpDoor, until_open
from suite.rooms import CATALOGUE, PROGRAMS, ROOMS, Program, World
from suite.settings import SuiteSettings

READY_SECONDS_MAX = 45
DEATHS_BEFORE_READY_MAX = 3


class SuiteError(Exception):
    """The suite cannot run; the message says why and what to do."""


class Launcher:
    """One run of the suite, from nothing to nothing. The caller holds the folder's lock."""

    def __init__(self, settings: SuiteSettings, folder: DataFolder, console: Console) -> None:
        self.settings = settings
        self.folder = folder
        self.console = console
        self.secrets = Secrets.keep(folder, LOGINS)
        self.database = Database(settings, folder, console, on_start=self._note_runtime)
        self.children: list[Child] = []
        self.world: World
        self._serving = False
        self._reserved = contextlib.ExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Returns after Ctrl-C or SIGTERM with every process gone; raises when the suite cannot go on."""
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sign, self._asked_to_stop, sign)
        try:
            await self._unless_stopped(self._start())
            await self._stopping.wait()
        finally:
            await self._stop()
        if self._failure is not None:
            raise self._failure

    def _asked_to_stop(self, sign: signal.Signals) -> None:
        self.console.say("suite", f"asked to stop by {sign.name}")
        self._stopping.set()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Ctrl-C counts during the start as well."""
        starting = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting

    async def _start(self) -> None:
        await self._outlive_leavings()
        listen = addresses.choose(self.settings.wished_addresses(), self._reserved)
        for sentence in addresses.moves(self.settings.wished_addresses(), listen):
            self.console.say("suite", sentence)
        await self.database.start()
        self._in_background(self.database.keep_running())
        applied = await asyncio.to_thread(migrate, self.database.admin_url, self.secrets.role_passwords)
        self.console.say("suite", f"migrations applied: {', '.join(applied) or 'none were missing'}")
        self.world = World(
            listen=listen,
            database_urls=self.database.note(self.secrets.role_passwords).urls,
            secrets=self.secrets,
            log_level=self.settings.log_level,
            data_dir=self.folder.path,
        )
        # The catalogue makes its plans at the provider, and rooms want the catalogue.
        await self._bring_up([program for program in PROGRAMS if not program.is_room])
        await self._apply_catalogue()
        await self._bring_up([program for program in PROGRAMS if program.is_room])
        self._serving = True
        self._note_runtime()
        self.console.welcome(self._runtime())

    async def _outlive_leavings(self) -> None:
        """A killed launcher's rooms got SIGTERM from the kernel; they have their time, then they are ended."""
        old = Runtime.read(self.folder)
        notes = [note for name, note in old.processes.items() if name != "postgres"] if old else []
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while left := [note for note in notes if note.is_alive()]:
            if time.monotonic() > deadline:
                for note in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(note.pid, signal.SIGKILL)
            await asyncio.sleep(0.05)

    async def _apply_catalogue(self) -> None:
        said: list[str] = []
        once = Child(
            "catalogue",
            CATALOGUE.arguments,
            self.world.environment(CATALOGUE),
            say=lambda _name, line: said.append(line),
        )
        try:
            status = await once.run_once()
        finally:
            await once.stop()
        # It lists every price that it changed, which is all of them the first time; the sum of it comes last.
        for line in said if status else said[-2:]:
            self.console.say(once.name, line)
        if status != 0:
            raise SuiteError(f"the catalogue was not applied (status {status}); the reasons are above")

    async def _bring_up(self, programs: Sequence[Program]) -> None:
        """Starts them, from now on to be kept running, and returns when they serve."""
        for program in programs:
            environment = self.world.environment(program)
            child = Child(
                program.name,
                program.arguments,
                environment,
                say=self.console.say,
                on_start=self._note_runtime,
            )
            self.children.append(child)
            self._in_background(child.keep_running())
        await self._until_open([door for program in programs for door in self._doors(program)])

    async def _until_open(self, doors: Sequence[Door]) -> None:
        """Returns when every door answers; SuiteError names those that do not."""
        waiting = {asyncio.ensure_future(until_open(door)): door.name for door in doors}
        deadline = time.monotonic() + READY_SECONDS_MAX
        try:
            while closed := [task for task in waiting if not task.done()]:
                for child in self.children:
                    if child.deaths >= DEATHS_BEFORE_READY_MAX:
                        raise SuiteError(f"{child.name} ends as soon as it is started; the reasons are above")
                if time.monotonic() > deadline:
                    names = ", ".join(waiting[task] for task in closed)
                    raise SuiteError(f"not ready after {READY_SECONDS_MAX} s: {names}")
                await asyncio.wait(closed, timeout=0.1)
        finally:
            for task in waiting:
                task.cancel()

    def _doors(self, program: Program) -> list[Door]:
        doors: list[Door] = []
        if program.is_room:
            doors.append(GrpcDoor(program.name, addresses.reachable(self.world.listen[program.name])))
        if program.http_door:
            doors.append(HttpDoor(f"{program.name} (http)", self.world.url(program.http_door)))
        return doors

    def _runtime(self) -> Runtime:
        me = ProcessNote.of(os.getpid())
        keys = {name: value for name, value in asdict(self.secrets).items() if name != "role_passwords"}
        running = {child.name: ProcessNote.of(child.pid) for child in self.children if child.pid}
        if postgres := self.database.process():
            running["postgres"] = postgres
        return Runtime(
            pid=me.pid,
            started_at=me.started_at,
            addresses={room: addresses.reachable(self.world.listen[room]) for room in ROOMS},
            metrics_urls={room: f"{self.world.url(f'{room}_metrics')}/metrics" for room in ROOMS},
            webhooks_http_url=self.world.url("webhooks_http"),
            sandbox_url=self.world.url("sandbox"),
            database=self.database.note(self.secrets.role_passwords),
            secrets=keys,
            processes=running,
            data_dir=str(self.folder.path),
            log_level=self.settings.log_level,
            test_clock=str(self.settings.billing_test_clock) if self.settings.billing_test_clock else None,
        )

    def _note_runtime(self) -> None:
        """Again after every restart, for the pids; never before all serve, for those who wait for the file."""
        if self._serving:
            self._runtime().write(self.folder)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._background_ended)
        self._tasks.append(task)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._stopping.set()

    async def _stop(self) -> None:
        """Rooms before their database, so that their last transactions can commit."""
        self._serving = False
        self._stopping.set()
        await asyncio.gather(*(child.stop() for child in self.children))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.database.stop()
        self._reserved.close()
        self.folder.runtime.unlink(missing_ok=True)
