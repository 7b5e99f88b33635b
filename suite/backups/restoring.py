"""Gives a backup back to another database, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg import sql

from shared import clock
from shared.migrations import MigrationFailed
from shared.migrations.lock import cluster_lock
from shared.migrations.roles import ensure_roles, quiet
from suite import binaries
from suite.backups import figures, rights
from suite.backups.errors import BackupFailed, RestoreFailed
from suite.backups.figures import Figures
from suite.backups.server import ProgramFailed, Server, programs_for, run
from suite.backups.shelf import Backup, Manifest, digest
from suite.binaries import NoPostgres
from suite.migrate import SCHEMAS, migrate

LOCK_WAIT_SECONDS = 120
UNDERSTANDS_ITS_SUCCESSORS = 17  # older ones know no transaction_timeout, which newer programs set
LEAVING_SECONDS_MAX = 1.0  # a backend outlives its connection for a moment


@dataclass(frozen=True)
class Restored:
    """What a person has to know before anybody is let in."""

    manifest: Manifest
    found: Figures
    at: datetime
    seconds: float
    applied: list[str]
    replaced: str | None  # what the database that was there is called now
    rights: list[str] | None  # differences; None: not compared

    @property
    def lost(self) -> timedelta:
        """What happened for so long is not in it."""
        return self.at - self.manifest.taken_at

    def flaws(self) -> list[str]:
        """What is not as it was when the backup was taken; empty when all is well."""
        was, rows = self.manifest, self.found.rows
        wrong = [
            f"{table}: {rows.get(table, 'no')} rows, {was.rows.get(table, 'no')} in the backup"
            for table in sorted(was.rows.keys() | rows.keys())
            if rows.get(table) != was.rows.get(table)
        ]
        if (self.found.transactions, self.found.amount) != (was.transactions, was.amount):
            wrong.append(
                f"the ledger: {self.found.transactions} transactions that come to {self.found.amount};"
                f" {was.transactions} and {was.amount} in the backup"
            )
        return wrong + (self.rights or [])


def restore(
    backup: Backup, server: Server, passwords: Mapping[str, str], *, replace: bool = False
) -> Restored:
    """All of it, or RestoreFailed and a database as empty as before.

    `replace`: a database with tables in it is renamed and stays; without, it is refused.
    """
    began = time.monotonic()
    with _explained("nothing was restored"):
        if digest(backup.dump) != backup.manifest.sha256:
            raise RestoreFailed(
                f"{backup.dump} is not what was written: its SHA-256 is another. Take an older one."
            )
        replaced = _make_room(server, replace=replace)
        _fill(server, backup, passwords)
    with _explained(f"the data are in {server.database}, but not as this release needs them"):
        found = _counted(server)
        applied = migrate(server.url(), passwords)
        with server.connect() as db:
            # pg_dump leaves the planner's knowledge behind, and without it the first queries are slow ones.
            db.execute("ANALYZE")
        seconds, at = round(time.monotonic() - began, 3), clock.now()
        differences = rights.differences(server)
    return Restored(backup.manifest, found, at, seconds, applied, replaced, differences)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (RestoreFailed, ProgramFailed, BackupFailed, MigrationFailed, NoPostgres, OSError) as error:
        raise RestoreFailed(f"{what}: {error}") from error
    except psycopg.Error as error:
        raise RestoreFailed(f"{what}: the database: {error}") from error


def _fill(server: Server, backup: Backup, passwords: Mapping[str, str]) -> None:
    with server.connect() as db:
        programs = programs_for(db)
        if (major := db.info.server_version // 10_000) < int(backup.manifest.server.split(".")[0]):
            raise RestoreFailed(
                f"the backup is of PostgreSQL {backup.manifest.server}; this server is {major}"
            )
        if major < UNDERSTANDS_ITS_SUCCESSORS and programs.major > major:
            raise RestoreFailed(
                f"this server is PostgreSQL {major}, and does not understand what pg_restore {programs.major} says to it:"
                f" install PostgreSQL {major} here, or restore to a newer server"
            )
    _make_roles(server, passwords)
    server.run(programs.program("pg_restore"), "--single-transaction", "--exit-on-error", str(backup.dump))


def verify(backup: Backup) -> None:
    """Reads all of it, unpacks every row and keeps nothing; RestoreFailed if it is not what was written."""
    if digest(backup.dump) != backup.manifest.sha256:
        raise RestoreFailed(f"{backup.dump} is not what was written: its SHA-256 is another")
    try:
        run(binaries.find().program("pg_restore"), "--file=/dev/null", str(backup.dump))
    except (ProgramFailed, NoPostgres) as error:
        raise RestoreFailed(f"{backup.dump}: {error}") from error


def _make_room(server: Server, *, replace: bool) -> str | None:
    with server.in_database("postgres").connect() as db:
        name = server.database
        if db.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            _create(db, name)
            return None
        with closing(server.connect()) as target:
            tables = target.execute(figures.TABLES).fetchall()
        if not tables:
            return None
        if not replace:
            raise RestoreFailed(
                f"the database {name} has {len(tables)} tables, and nothing is restored over what may be needed: "
                "name a new database, or say --replace, which renames this one and keeps it"
            )
        _assert_alone(db, name)
        aside = f"{name}_before_{clock.now():%Y%m%dt%H%M%S}"
        db.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(aside))
        )
        _create(db, name)
        return aside


def _assert_alone(db: psycopg.Connection, name: str) -> None:
    deadline = time.monotonic() + LEAVING_SECONDS_MAX
    while db.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", [name]).fetchone():
        if time.monotonic() > deadline:
            raise RestoreFailed(f"somebody is still connected to {name}: stop every room first")
        time.sleep(0.02)


def _create(db: psycopg.Connection, name: str) -> None:
    db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))


def _make_roles(server: Server, passwords: Mapping[str, str]) -> None:
    """As a migration makes them: a dump names them and holds none."""
    with cluster_lock(server.url(), wait_seconds=LOCK_WAIT_SECONDS), server.connect() as db:
        quiet(db)
        ensure_roles(db, SCHEMAS, passwords)


def _counted(server: Server) -> Figures:
    with server.connect() as db:
        db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        db.execute("SET LOCAL row_security = off")
        return figures.count(db)
