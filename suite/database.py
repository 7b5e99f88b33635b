"""The suite's database: an embedded server that is kept running, or the one that DATABASE_URL names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

from suite.console import Console
from suite.files import DatabaseNote, DataFolder
from suite.postgres import ADMIN, EmbeddedPostgres, PostgresError
from suite.processes import ProcessNote
from suite.settings import SuiteSettings

WATCH_SECONDS = 0.2
FAILURES_MAX = 3


class Database:
    """Started once; afterwards `admin_url` answers, except while an embedded server is being restarted."""

    def __init__(
        self, settings: SuiteSettings, folder: DataFolder, console: Console, *, on_start: Callable[[], None]
    ) -> None:
        self.admin_url = settings.database_url.get_secret_value() if settings.database_url else ""
        self._console = console
        self._on_start = on_start
        self._embedded = None
        if not self.admin_url:
            self._embedded = EmbeddedPostgres(folder.postgres, port=settings.billing_postgres_port)

    async def start(self) -> None:
        if self._embedded is None:
            return
        await self._start_embedded(self._embedded)
        self._embedded.create_database(ADMIN)
        self.admin_url = self._embedded.url()
        self._console.say(
            "suite", f"postgres listens on 127.0.0.1:{self._embedded.port}, log {self._embedded.log}"
        )

    async def keep_running(self) -> None:
        """Ends only by a PostgresError, when the server dies again and again."""
        failures = 0
        while self._embedded is not None:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._embedded.has_died():
                continue
            self._console.say("suite", "postgres died; starting it again")
            try:
                await self._start_embedded(self._embedded)
            except PostgresError as error:
                failures += 1
                if failures == FAILURES_MAX:
                    raise
                self._console.say("suite", str(error))
            else:
                failures = 0
                self._console.say("suite", "postgres is back")
                self._on_start()

    async def _start_embedded(self, server: EmbeddedPostgres) -> None:
        for pause_seconds in server.starting():
            await asyncio.sleep(pause_seconds)

    def stop(self) -> None:
        if self._embedded is not None:
            self._embedded.stop()

    def process(self) -> ProcessNote | None:
        """The server's, if it is ours and alive."""
        if self._embedded is None or self._embedded.has_died():
            return None
        return ProcessNote.of(self._embedded.server_pid())

    def note(self, passwords: Mapping[str, str]) -> DatabaseNote:
        """How each role connects."""
        address = urlsplit(self.admin_url)
        host, port = address.hostname or "127.0.0.1", address.port or 5432
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        urls = {
            role: address._replace(netloc=f"{role}:{quote(password)}@{place}").geturl()
            for role, password in passwords.items()
        }
        return DatabaseNote(host, port, address.path.lstrip("/"), self._embedded is not None, urls)
