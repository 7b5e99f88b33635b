"""Takes one backup: a dump of one snapshot, counted in that snapshot, read back before it counts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from shared import clock
from suite.backups import figures
from suite.backups.errors import BackupFailed
from suite.backups.figures import Figures
from suite.backups.server import ProgramFailed, Server, programs_for, run
from suite.backups.shelf import Backup, Manifest, Shelf, digest, sync
from suite.binaries import Binaries, NoPostgres

# A table that a migration is changing; it waits for us as we for it.
LOCK_WAIT_MS = 60_000
_TABLE_DATA = re.compile(r"^\d+; \d+ \d+ TABLE DATA (\S+) (\S+) ", re.MULTILINE)


@dataclass(frozen=True)
class _Snapshot:
    name: str
    figures: Figures


def take(server: Server, shelf: Shelf) -> Backup:
    """Returns when it is whole, verified and on the disk; BackupFailed leaves nothing behind."""
    began = time.monotonic()
    with shelf.writing():
        taken_at = clock.now()
        unfinished = shelf.unfinished(taken_at)
        try:
            with server.connect() as db:
                programs = programs_for(db)
                with _snapshot(db) as snapshot:
                    _dump(server, programs, snapshot.name, unfinished)
                version = db.info.parameter_status("server_version") or ""
            _read_back(programs, unfinished, snapshot.figures)
            manifest = Manifest(
                taken_at=taken_at,
                seconds=round(time.monotonic() - began, 3),
                bytes=unfinished.stat().st_size,
                sha256=digest(unfinished),
                server=version,
                programs=run(programs.program("pg_dump"), "--version").strip(),
                database=server.database,
                revisions=snapshot.figures.revisions,
                transactions=snapshot.figures.transactions,
                amount=snapshot.figures.amount,
                rows=snapshot.figures.rows,
            )
            return shelf.keep(unfinished, manifest)
        except (ProgramFailed, NoPostgres, OSError) as error:
            raise BackupFailed(str(error)) from error
        except psycopg.Error as error:
            raise BackupFailed(f"the database: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def _snapshot(db: psycopg.Connection) -> Iterator[_Snapshot]:
    """One moment of the database, held for pg_dump to join."""
    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout", "row_security"):
            db.execute("SELECT set_config(%s, '0', true)", [setting])
        row = db.execute("SELECT pg_export_snapshot()").fetchone()
        yield _Snapshot(str(row[0]) if row else "", figures.count(db))
    finally:
        if not db.closed and not db.broken:
            db.execute("ROLLBACK")


def _dump(server: Server, programs: Binaries, snapshot: str, unfinished: Path) -> None:
    # Ours from the first byte on; pg_dump would make it readable by the group.
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        server.run(
            programs.program("pg_dump"),
            "--format=custom",
            f"--snapshot={snapshot}",
            f"--lock-wait-timeout={LOCK_WAIT_MS}",
            output=file,
        )
    sync(unfinished)


def _read_back(programs: Binaries, unfinished: Path, counted: Figures) -> None:
    restore = programs.program("pg_restore")
    listed = {
        f"{schema}.{table}" for schema, table in _TABLE_DATA.findall(run(restore, "--list", str(unfinished)))
    }
    if missing := sorted(counted.rows.keys() - listed):
        raise BackupFailed(f"the dump does not hold {', '.join(missing)}")
    # The list stands at the front of the file; only reading all of it unpacks every row.
    run(restore, "--file=/dev/null", str(unfinished))
