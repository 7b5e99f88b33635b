"""A base backup and the WAL since, to a moment before the accident: what docs/backup.md says of a server of one's own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from suite.backups.server import run
from suite.files import write_private
from suite.postgres import EmbeddedPostgres
from tests.suite.running import HOUSE

PAGE = (HOUSE / "docs" / "backup.md").read_text()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="billing-pitr-"))
    path.chmod(0o711)
    (path / "wal").mkdir()
    yield path
    shutil.rmtree(path)


def asked(server: EmbeddedPostgres, statement: str) -> str:
    with psycopg.connect(server.url("postgres"), autocommit=True) as db:
        cursor = db.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    return str(row[0]) if row else ""


def of_the_page(beginning: str, folder: Path) -> str:
    """One line of the page, with our folder in place of its."""
    [line] = [line for line in PAGE.splitlines() if line.startswith(beginning)]
    return line.replace("/var/backups/wal", str(folder / "wal")).partition(";   --")[0]


def give_to_the_server(server: EmbeddedPostgres, *folders: Path) -> None:
    for place in folders:
        for path in (place, *place.rglob("*")):
            if server.account is not None:
                os.chown(path, server.account.uid, server.account.gid)


def until_archived(server: EmbeddedPostgres, name: str) -> None:
    deadline = time.monotonic() + 30
    while asked(server, "SELECT max(last_archived_wal) FROM pg_stat_archiver") < name:
        assert time.monotonic() < deadline, asked(server, "SELECT last_failed_wal FROM pg_stat_archiver")
        time.sleep(0.02)


def test_a_table_that_was_dropped_is_back_as_it_was_a_moment_before(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "first", port=0)
    server.start()
    give_to_the_server(server, folder / "wal")
    for setting in ("archive_command", "archive_mode", "archive_timeout"):
        asked(server, of_the_page(f"ALTER SYSTEM SET {setting}", folder))
    server.stop()
    server.start()
    try:
        asked(server, "CREATE TABLE kept AS SELECT n FROM generate_series(1, 1000) n")
        password = (server.root / "password").read_text()
        address = f"host=127.0.0.1 port={server.port} user=billing"
        flags = ["--checkpoint=fast", "--wal-method=none"]
        assert all(flag in PAGE for flag in flags)
        # fmt: off
        run(server.programs.program("pg_basebackup"), f"--dbname={address}", "-D", str(folder / "base"), *flags,
            password=password)
        # fmt: on
        asked(server, "INSERT INTO kept SELECT n FROM generate_series(1001, 1500) n")
        before = asked(server, "SELECT clock_timestamp()")
        time.sleep(0.01)
        asked(server, "DROP TABLE kept")
        until_archived(server, asked(server, "SELECT pg_walfile_name(pg_switch_wal())"))
    finally:
        server.stop()

    (folder / "second").mkdir()
    again = EmbeddedPostgres(folder / "second", port=0)
    shutil.copytree(folder / "base", again.data)
    (again.data / "recovery.signal").touch()
    with (again.data / "postgresql.auto.conf").open("a") as settings:
        for setting in ("restore_command", "recovery_target_time", "recovery_target_action", "archive_mode"):
            assert f"{setting} = " in PAGE
        settings.write(
            f"restore_command = 'cp {folder}/wal/%f %p'\nrecovery_target_time = '{before}'\n"
            "recovery_target_action = 'promote'\narchive_mode = off\n"
        )
    give_to_the_server(again, again.data)
    again.data.chmod(0o700)
    write_private(again.root / "password", password)
    again.start()
    try:
        assert asked(again, "SELECT count(*) FROM kept") == "1500"
        while asked(again, "SELECT pg_is_in_recovery()") == "True":
            time.sleep(0.02)
        asked(again, "INSERT INTO kept VALUES (1501)")
    finally:
        again.stop()
