"""A backup is whole or is not there, and what is given back is what was there."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from shared import migrations
from suite.backups import rights
from suite.backups.errors import BackupFailed, RestoreFailed
from suite.backups.restoring import restore, verify
from suite.backups.server import Server
from suite.backups.shelf import Backup, Shelf
from suite.backups.taking import take
from suite.migrate import SCHEMAS, migrate
from tests.faults.cluster import OwnCluster, own_cluster
from tests.suite.running import HOUSE

INSERT = """
INSERT INTO ledger.credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind, amount,
    tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, metadata, answer, first_seq, last_seq,
    created_at)
SELECT 'acme', 'tx' || n, 'key' || n, '', 1, 'debit', -n, 'posted', '', md5(n::text || random()), '', '', '', '{}', '{}',
    n, n, now()
FROM generate_series(%s::bigint, %s::bigint) n
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    with own_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def server(cluster: OwnCluster) -> Server:
    found = Server.of(cluster.server.url("billing"))
    with found.connect() as db:
        db.execute(INSERT, [1, 1000])
    return found


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def elsewhere(server: Server, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A database that is not there yet, of this test alone."""
    name = f"restored_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"
    yield server.in_database(name)
    with server.in_database("postgres").connect() as db:
        db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def rows(server: Server, query: str) -> list[tuple[object, ...]]:
    with server.connect() as db:
        return db.execute(query).fetchall()


def test_what_is_given_back_is_one_moment_of_a_database_that_went_on(
    server: Server, shelf: Shelf, elsewhere: Server
) -> None:
    committed, stop = [2000], threading.Event()

    def write() -> None:
        with server.connect() as db:
            while not stop.is_set():
                db.execute(INSERT, [committed[-1] + 1, committed[-1] + 2])
                committed.append(committed[-1] + 2)

    writer = threading.Thread(target=write)
    writer.start()
    while len(committed) < 20:
        time.sleep(0.01)
    before = committed[-1]
    made = take(server, shelf)
    stop.set()
    writer.join()

    done = restore(made, elsewhere, {})

    assert done.flaws() == []
    assert done.rights == []
    written = [int(str(n)) for (n,) in rows(elsewhere, "SELECT first_seq FROM ledger.credit_transactions")]
    later = sorted(n for n in written if n > 2000)
    assert later == list(range(2001, later[-1] + 1)), "each transaction whole, none twice, none left out"
    assert before <= later[-1] <= committed[-1]
    assert done.manifest.amount == -sum(written)
    assert done.manifest.transactions == len(written)
    assert made.manifest.taken_at < done.at


def test_what_nobody_may_do_nobody_may_do_afterwards(
    cluster: OwnCluster, server: Server, shelf: Shelf, elsewhere: Server
) -> None:
    restore(take(server, shelf), elsewhere, {})

    def as_role(role: str) -> psycopg.Connection:
        address = cluster.url(role)
        return psycopg.connect(f"{address.rpartition('/')[0]}/{elsewhere.database}")

    for role in ("ledger_rw", "billing_operator"):
        with as_role(role) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("UPDATE ledger.credit_transactions SET amount = 0")
    with as_role("ledger_rw") as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute(
            "INSERT INTO ops.billing_audit_log VALUES ('x', 'webhooks', 'a', 'a', 'a', NULL, 'a', 'a', '{}')"
        )
    with as_role("ledger_rw") as db:
        assert db.execute("SHOW search_path").fetchone() == ("ledger, ops",)


@pytest.mark.parametrize(
    "change",
    [
        "GRANT DELETE ON ledger.credit_entries TO ledger_rw",
        "GRANT UPDATE (amount) ON ledger.credit_transactions TO billing_operator",
        "ALTER TABLE ops.billing_audit_log DISABLE ROW LEVEL SECURITY",
        "DROP POLICY own_room_inserts ON ops.billing_audit_log",
        "GRANT USAGE ON SCHEMA ledger TO PUBLIC",
        "ALTER TABLE ledger.credit_transactions DROP CONSTRAINT credit_transactions_once_per_key",
        "DROP INDEX ledger.credit_transactions_fund_once",
        "ALTER TABLE ledger.tenant_credits OWNER TO ledger_rw",
        "ALTER DEFAULT PRIVILEGES FOR ROLE ledger_owner IN SCHEMA ledger GRANT DELETE ON TABLES TO ledger_rw",
    ],
)
def test_a_right_that_is_another_is_named(server: Server, change: str) -> None:
    expected = rights.described(server)
    with server.connect() as db:
        db.execute("BEGIN")
        db.execute(change)
        db.execute("SET LOCAL search_path = pg_catalog")
        schemas = {"schemas": [schema.name for schema in SCHEMAS]}
        found = [row for each in rights.STATEMENTS for row in db.execute(each, schemas).fetchall()]
        db.execute("ROLLBACK")

    changed = {what: f"{how} {' '.join(sorted(may or ()))}".strip() for what, how, may in found}
    assert changed != expected


def test_a_difference_to_a_fresh_database_is_a_flaw(server: Server, shelf: Shelf, elsewhere: Server) -> None:
    with server.connect() as db:
        db.execute("GRANT DELETE ON ledger.credit_entries TO ledger_rw")
    try:
        done = restore(take(server, shelf), elsewhere, {})
    finally:
        with server.connect() as db:
            db.execute("REVOKE DELETE ON ledger.credit_entries FROM ledger_rw")

    [flaw] = done.flaws()
    assert flaw.startswith("table ledger.credit_entries: ")


def test_a_backup_of_an_older_schema_comes_out_as_this_one(
    cluster: OwnCluster, server: Server, shelf: Shelf, elsewhere: Server, tmp_path: Path
) -> None:
    older = []
    for schema in SCHEMAS:
        versions = tmp_path / schema.name / "versions"
        versions.mkdir(parents=True)
        shutil.copy(min((schema.path / "versions").glob("0001_*.py")), versions)
        older.append(replace(schema, path=versions.parent))
    cluster.server.create_database("old")
    old = server.in_database("old")
    migrations.migrate(old.url(), schemas=older, passwords={})

    done = restore(take(old, shelf), elsewhere, {})

    assert "ops:0002" in done.applied
    assert done.flaws() == []
    assert done.manifest.revisions["ops"] == "0001"
    assert migrate(elsewhere.url(), {}) == []


def test_an_administrator_who_is_no_superuser_backs_up_and_restores(
    cluster: OwnCluster, server: Server, shelf: Shelf
) -> None:
    with server.connect() as db:
        db.execute("CREATE ROLE manager LOGIN CREATEROLE CREATEDB PASSWORD 'sample'")
        owners = ", ".join(f"{schema.owner}, {schema.rw}" for schema in SCHEMAS)
        db.execute(f"GRANT {owners}, billing_operator, billing_readonly TO manager WITH ADMIN OPTION")
        db.execute("CREATE DATABASE managed OWNER manager TEMPLATE template0")
    managed = Server.of(cluster.server.url("managed", user="manager", password="sample"))
    migrate(managed.url(), {})

    done = restore(take(managed, shelf), managed.in_database("managed_again"), {})

    assert done.flaws() == []
    assert done.rights == []


def test_nothing_is_restored_over_what_may_be_needed(server: Server, shelf: Shelf, elsewhere: Server) -> None:
    made = take(server, shelf)
    restore(made, elsewhere, {})

    with pytest.raises(RestoreFailed, match=r"has \d+ tables.*--replace"):
        restore(made, elsewhere, {})
    with elsewhere.connect(), pytest.raises(RestoreFailed, match="still connected"):
        restore(made, elsewhere, {}, replace=True)
    done = restore(made, elsewhere, {}, replace=True)

    assert done.replaced is not None
    aside = server.in_database(done.replaced)
    count = "SELECT count(*) FROM ledger.credit_transactions"
    assert rows(aside, count) == rows(elsewhere, count) == [(made.manifest.transactions,)]


def damage(dump: Path) -> None:
    with dump.open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"\0" * 64)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage, "SHA-256"),
        (lambda dump: os.truncate(dump, 5000), "5000 bytes"),
        (lambda dump: dump.with_suffix(".json").unlink(), "is not beside it"),
        (lambda dump: dump.with_suffix(".json").write_text("{}"), "not a manifest"),
    ],
    ids=["damaged", "cut short", "no manifest", "another manifest"],
)
def test_what_is_not_what_was_written_is_not_restored(
    server: Server, shelf: Shelf, elsewhere: Server, harm: Callable[[Path], object], said: str
) -> None:
    made = take(server, shelf)
    verify(made)
    harm(made.dump)

    with pytest.raises((RestoreFailed, ValueError), match=said):
        restore(Backup.at(made.dump), elsewhere, {})
    with pytest.raises((RestoreFailed, ValueError), match=said):
        verify(Backup.at(made.dump))

    assert (
        rows(
            server.in_database("postgres"),
            f"SELECT 1 FROM pg_database WHERE datname = '{elsewhere.database}'",
        )
        == []
    )


def test_a_backup_is_its_owners_alone_and_what_others_left_beside_it_stays(
    server: Server, shelf: Shelf
) -> None:
    shelf.folder.mkdir()
    strangers = [
        "billing.dump",
        "billing-2026.dump",
        "notes.txt",
        "billing-20200101T000000Z.dump.bak",
        "other.json",
    ]
    for name in strangers:
        (shelf.folder / name).write_text("mine")
    left = shelf.folder / "billing-20200101T000000Z.dump.unfinished"
    left.write_text("killed")

    made = take(server, shelf)

    assert not left.exists()
    assert [each.dump for each in shelf.backups()] == [made.dump]
    assert all((shelf.folder / name).read_text() == "mine" for name in strangers)
    for path in (made.dump, made.dump.with_suffix(".json")):
        assert path.stat().st_mode & 0o777 == 0o600


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "suite", *arguments],
        cwd=HOUSE,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


@pytest.fixture(scope="module")
def large(cluster: OwnCluster, server: Server) -> str:
    """The address of a database that takes more than a moment to dump."""
    cluster.server.create_database("large")
    with server.in_database("large").connect() as db:
        db.execute("CREATE TABLE many AS SELECT n, md5(n::text) AS t FROM generate_series(1, 600000) n")
    return cluster.server.url("large")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to stop"])
def test_one_that_is_ended_in_the_middle_leaves_nothing_that_looks_whole(
    server: Server, shelf: Shelf, large: str, sign: signal.Signals
) -> None:
    process = command("backup", "--to", str(shelf.folder), DATABASE_URL=large)
    while not any(path.stat().st_size > 50_000 for path in shelf.folder.glob("*.unfinished")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    password = Server.of(large).password or "?"
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert any(b"pg_dump" in line and b"dbname=large" in line for line in lines)
    assert not any(password.encode() in line for line in lines)
    process.send_signal(sign)
    process.communicate(timeout=20)

    assert shelf.backups() == []
    assert shelf.broken() == []
    if sign == signal.SIGTERM:
        assert list(shelf.folder.glob("billing*")) == []
    while rows(server, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pg_dump'"):
        time.sleep(0.02)
    again = take(server, shelf)
    assert {path.name for path in shelf.folder.iterdir()} == {
        again.dump.name,
        again.dump.with_suffix(".json").name,
        ".lock",
    }


def test_a_full_disk_is_said_and_leaves_nothing(shelf: Shelf, large: str) -> None:
    """As far as files may grow: PostgreSQL's program is told the same as by a disk."""
    process = subprocess.run(
        [sys.executable, "-m", "suite", "backup", "--to", str(shelf.folder)],
        cwd=HOUSE,
        env={**os.environ, "DATABASE_URL": large},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )

    assert process.returncode == 1
    assert process.stderr.startswith("the backup failed: pg_dump "), process.stderr
    assert [path.name for path in shelf.folder.iterdir()] == [".lock"]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount a small disk"
)
def test_a_disk_without_space_is_said_and_leaves_nothing(shelf: Shelf, large: str) -> None:
    shelf.folder.mkdir()
    script = 'mount -t tmpfs -o size=200k none "$0" || exit 77; "$1" -m suite backup --to "$0"; s=$?; ls -A "$0"; exit $s'
    told = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(shelf.folder), sys.executable],
        cwd=HOUSE,
        env={**os.environ, "DATABASE_URL": large},
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode == 77 or "unshare" in told.stderr:
        pytest.skip("this machine lets root mount nothing")

    assert told.returncode == 1
    assert "No space left on device" in told.stderr
    assert told.stdout.split() == [".lock"]


def test_the_commands_tell_a_person(server: Server, cluster: OwnCluster, shelf: Shelf) -> None:
    url, to = cluster.server.url("billing"), ["--to", str(shelf.folder)]
    status, said, complained = ended(command("backups", "list", *to, DATABASE_URL=url))
    assert (status, complained) == (3, f"There is no backup in {shelf.folder}: at most 7h is well.\n")

    status, said, complained = ended(command("backup", *to, DATABASE_URL=url))
    assert (status, complained) == (0, "")
    [made] = shelf.backups()
    assert said.startswith(f"{made.dump}: ")

    status, said, complained = ended(command("backups", "list", *to))
    assert (status, complained) == (0, "")
    assert made.dump.name in said
    status, said, complained = ended(command("backups", "verify", str(made.dump)))
    assert (status, made.manifest.sha256 in said) == (0, True)
    time.sleep(1)
    status, said, complained = ended(command("backups", "list", *to, "--older-than", "1s"))
    assert status == 3
    assert "The newest is " in complained


def test_a_password_in_a_command_line_is_refused_and_not_repeated(server: Server, shelf: Shelf) -> None:
    made = take(server, shelf)

    status, said, complained = ended(
        command("restore", str(made.dump), "--to", "postgresql://u:hunter2@127.0.0.1:1/x")
    )

    assert status == 1
    assert "PGPASSFILE" in complained
    assert "hunter2" not in said + complained


def test_restored_by_command_with_the_password_in_the_environment(
    cluster: OwnCluster, server: Server, shelf: Shelf, elsewhere: Server
) -> None:
    made = take(server, shelf)
    to = f"postgresql://billing@127.0.0.1:{cluster.server.port}/{elsewhere.database}"

    status, said, complained = ended(
        command("restore", str(made.dump), "--to", to, PGPASSWORD=server.password or "")
    )

    assert (status, complained) == (0, "")
    assert f"ledger: {made.manifest.transactions} transactions that come to {made.manifest.amount}" in said
    assert "rights: as in a fresh database" in said


def test_rounds_go_on_until_they_are_asked_to_stop(cluster: OwnCluster, shelf: Shelf) -> None:
    process = command(
        "backup",
        "--every",
        "1s",
        "--keep",
        "none",
        "--to",
        str(shelf.folder),
        DATABASE_URL=cluster.server.url("billing"),
    )
    while len(shelf.backups()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    status, said, _ = ended(process)

    assert status == 128 + signal.SIGTERM
    assert len(said.splitlines()) == len(shelf.backups())


def test_two_at_once_do_not_write_into_one_folder(server: Server, shelf: Shelf) -> None:
    with shelf.writing(), pytest.raises(BackupFailed, match="another backup"):
        take(server, shelf)


def test_no_server_is_a_sentence(shelf: Shelf) -> None:
    status, _, complained = ended(
        command("backup", "--to", str(shelf.folder), DATABASE_URL="postgresql://u:hunter2@127.0.0.1:9/x")
    )

    assert status == 1
    assert complained.startswith("the backup failed: the database: ")
    assert "hunter2" not in complained
