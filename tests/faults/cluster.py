"""A PostgreSQL that a test may kill: its own cluster, durable as in production, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from suite.migrate import LOGINS, migrate
from suite.postgres import EmbeddedPostgres

DATABASE = "billing"


class OwnCluster:
    """A migrated database in a cluster of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = EmbeddedPostgres(folder / "postgres", port=0)
        self._passwords = {role: secrets.token_urlsafe(18) for role in LOGINS}

    def create(self) -> None:
        self.server.start()
        self.server.create_database(DATABASE)
        migrate(self.server.url(DATABASE), self._passwords)

    def url(self, role: str) -> str:
        return self.server.url(DATABASE, user=role, password=self._passwords[role])

    def kill(self) -> None:
        """kill -9 of the postmaster; its backends notice soon, and one may still be at work."""
        os.kill(self.server.server_pid(), signal.SIGKILL)

    def kill_backend_of_a_lane(self) -> None:
        """kill -9 of one backend: the server then ends all the others and recovers by itself."""
        with psycopg.connect(self.server.url("postgres")) as db:
            row = db.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'ledger-lane-%'"
                " ORDER BY state = 'idle' LIMIT 1"
            ).fetchone()
        if row is not None:
            os.kill(row[0], signal.SIGKILL)

    async def start_again(self) -> None:
        """Returns when it answers."""
        assert self.server.process is not None
        await asyncio.to_thread(self.server.process.wait, 10)
        # In steps, on this thread: the server lives as long as the thread that started it.
        for pause_seconds in self.server.starting():
            await asyncio.sleep(pause_seconds)


@contextmanager
def own_cluster() -> Iterator[OwnCluster]:
    folder = Path(tempfile.mkdtemp(prefix="billing-faults-"))
    folder.chmod(0o711)  # as root the server is `nobody`, who must get in
    cluster = OwnCluster(folder)
    try:
        cluster.create()
        yield cluster
    finally:
        cluster.server.stop()
        shutil.rmtree(folder, ignore_errors=True)
