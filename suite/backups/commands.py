"""`python -m suite backup`, `backups` and `restore`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from shared import clock
from shared.config import load
from shared.dsn import address_flaw
from suite.backups import restoring, rounds
from suite.backups.errors import BackupFailed, RestoreFailed
from suite.backups.restoring import Restored
from suite.backups.retention import Keep, expired
from suite.backups.server import Server, embedded, ours
from suite.backups.shelf import Backup, Shelf
from suite.backups.taking import take
from suite.binaries import NoPostgres
from suite.console import fail
from suite.files import DataFolder, Secrets
from suite.migrate import LOGINS, passwords_from
from suite.postgres import PostgresError
from suite.settings import SuiteSettings

app = typer.Typer(no_args_is_help=True, help="Look at the backups that there are.")
To = Annotated[
    Path | None, typer.Option("--to", help="folder; else BILLING_BACKUP_DIR, else backups beside the data")
]
TOO_OLD = 3


def backup(
    to: To = None,
    every: Annotated[str | None, typer.Option(help="go on, at every 6h of the UTC day (or 30m, 1d)")] = None,
    keep: Annotated[
        str, typer.Option(help="days of all / of daily / of weekly ones; none: delete none")
    ] = "7/30/365",
) -> None:
    """Back up the whole database while it works; what is too old goes."""
    settings = load(SuiteSettings)
    shelf = _shelf(settings, to)
    try:
        kept = None if keep == "none" else Keep.parse(keep)
        pause = rounds.interval(every) if every else None
    except ValueError as error:
        fail(f"--keep or --every: {error}")
    signal.signal(signal.SIGTERM, _end)
    if pause is None:
        try:
            _take(settings, shelf, kept)
        except BackupFailed as error:
            fail(f"the backup failed: {error}")
        return
    rounds.keep_on(
        lambda: _take(settings, shelf, kept), lambda: _newest(shelf), pause, say=_complain, stop=Event()
    )


@app.command("list")
def list_(
    to: To = None,
    older_than: Annotated[str, typer.Option(help="exit status 3 when the newest is older")] = "7h",
) -> None:
    """Every backup with its age; the exit status says whether the newest is new enough."""
    try:
        patience = rounds.interval(older_than)
    except ValueError as error:
        fail(f"--older-than: {error}")
    shelf = _shelf(load(SuiteSettings), to)
    now = clock.now()
    print(f"{'taken':<20} {'age':>9} {'size':>10} {'transactions':>13} {'sum':>14}  file")
    for each in shelf.backups():
        told = each.manifest
        print(
            f"{told.taken_at:%Y-%m-%d %H:%M:%SZ} {_age(now - told.taken_at):>9} {_size(told.bytes):>10}"
            f" {told.transactions:>13} {told.amount:>14}  {each.dump.name}"
        )
    for sentence in shelf.broken():
        print(f"not a backup: {sentence}")
    newest = _newest(shelf)
    if newest is None or now - newest > patience:
        how = "There is no backup" if newest is None else f"The newest is {_age(now - newest)} old"
        print(f"{how} in {shelf.folder}: at most {older_than} is well.", file=sys.stderr)
        raise typer.Exit(TOO_OLD)


@app.command()
def verify(file: Annotated[Path, typer.Argument(help="a .dump with its .json beside it")]) -> None:
    """Read a backup from its first byte to its last, and unpack every row."""
    found = _backup_at(file)
    try:
        restoring.verify(found)
    except RestoreFailed as error:
        fail(str(error))
    print(
        f"{found.dump.name} is what was written: {_size(found.manifest.bytes)}, SHA-256 {found.manifest.sha256}"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="a .dump with its .json beside it")],
    to: Annotated[
        str | None,
        typer.Option(
            help="postgresql://user@host:port/name, or a folder for a new embedded one; else DATABASE_URL"
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="rename a database that has tables in it, and restore in its place"),
    ] = False,
) -> None:
    """Give a backup back to a new database, bring it to this release's schema, and compare."""
    found = _backup_at(file)
    try:
        with _target(to) as (server, passwords):
            done = restoring.restore(found, server, passwords, replace=replace)
    except (RestoreFailed, PostgresError, NoPostgres, BackupFailed) as error:
        fail(f"Not restored: {error}")
    _tell(found, done, server, passwords)
    if flaws := done.flaws():
        print("\n".join(["", "NOT WELL:", *(f"  {flaw}" for flaw in flaws)]))
        raise typer.Exit(1)


def _take(settings: SuiteSettings, shelf: Shelf, keep: Keep | None) -> None:
    try:
        with ours(settings, DataFolder.choose(settings.billing_data_dir)) as server:
            made = take(server, shelf)
    except (PostgresError, NoPostgres) as error:
        raise BackupFailed(str(error)) from error
    told = made.manifest
    print(
        f"{made.dump}: {_size(told.bytes)} in {told.seconds:.1f} s, {sum(told.rows.values())} rows,"
        f" {told.transactions} transactions that come to {told.amount}",
        flush=True,
    )
    if keep is not None:
        there = {each.manifest.taken_at: each for each in shelf.backups()}
        for moment in sorted(expired(there, clock.now(), keep)):
            there[moment].delete()
            print(f"{there[moment].dump.name} is no longer needed and was deleted", flush=True)


def _newest(shelf: Shelf) -> datetime | None:
    return max((each.manifest.taken_at for each in shelf.backups()), default=None)


def _shelf(settings: SuiteSettings, to: Path | None) -> Shelf:
    wished = to or settings.billing_backup_dir
    return Shelf(wished or DataFolder.choose(settings.billing_data_dir).path / "backups")


def _backup_at(file: Path) -> Backup:
    try:
        return Backup.at(file)
    except FileNotFoundError:
        fail(f"{file} is not there.")
    except ValueError as error:
        fail(f"{file} is no backup: {error}")


@contextmanager
def _target(to: str | None) -> Iterator[tuple[Server, dict[str, str]]]:
    """Where to restore, and the passwords that its roles are to have."""
    if to is not None and "://" not in to:
        folder = DataFolder.choose(Path(to))
        if (folder.postgres / "data").exists():
            raise RestoreFailed(f"{to} holds a database already: name a new folder")
        folder.make()
        passwords = Secrets.keep(folder, LOGINS).role_passwords
        with embedded(folder) as server:
            yield server, passwords
        return
    url = to or os.environ.get("DATABASE_URL", "")
    if not url or (flaw := address_flaw(url)):
        raise RestoreFailed(f"--to or DATABASE_URL: {flaw if url else 'neither says where to'}")
    server = Server.of(url)
    if to is not None and server.password is not None:
        raise RestoreFailed(
            "everybody on the machine can read a command line: put the password into PGPASSWORD or a PGPASSFILE,"
            " or the whole address into DATABASE_URL"
        )
    given = {name: value for name, value in os.environ.items() if name in LOGINS.values()}
    yield server, passwords_from({**given, "DATABASE_URL": url}) if given else {}


def _tell(found: Backup, done: Restored, server: Server, passwords: dict[str, str]) -> None:
    print(f"{'rows':>10}  table")
    for table, rows in done.found.rows.items():
        print(f"{rows:>10}  {table}")
    print(f"ledger: {done.found.transactions} transactions that come to {done.found.amount}")
    print(f"schema: {', '.join(done.applied) or 'nothing had to be migrated'}")
    print(
        "rights: not compared, for this user may not make a database to compare with"
        if done.rights is None
        else f"rights: {f'{len(done.rights)} differences' if done.rights else 'as in a fresh database'}"
    )
    if done.replaced:
        print(f"the database that was there is called {done.replaced} now")
    if not passwords:
        print(
            "roles keep the passwords they have; those that are new have none until `python -m suite migrate`"
        )
    print(f"taken at {done.manifest.taken_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}: what came after it,"
          f" {_age(done.lost)}, is not in it (RPO)")  # fmt: skip
    print(f"restored in {done.seconds:.1f} s (RTO of the data)")


def _age(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return (
        f"{hours // 24} d {hours % 24} h"
        if hours >= 48
        else f"{hours} h {minutes:02} m"
        if hours
        else f"{minutes} m"
    )


def _size(length: int) -> str:
    return f"{length / 1e6:.1f} MB" if length >= 1e5 else f"{length / 1e3:.1f} kB"


def _complain(sentence: str) -> None:
    print(f"{clock.now():%Y-%m-%dT%H:%M:%SZ} {sentence}", file=sys.stderr, flush=True)


def _end(_signal: int, _frame: object) -> None:
    # An exception, so that what is half written is cleared away.
    raise SystemExit(128 + signal.SIGTERM)
