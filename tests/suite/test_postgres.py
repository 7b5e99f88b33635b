"""The embedded Postgres: starts from anything, loses nothing, outlives nobody."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from suite import binaries, processes
from suite.postgres import CLUSTER_NAME, AlreadyOwned, EmbeddedPostgres, PostgresError
from suite.processes import Account
from tests.suite.running import python_for

HOUSE = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Like tmp_path, but `nobody` may pass through it, as the server must when root runs it."""
    path = Path(tempfile.mkdtemp(prefix="billing-postgres-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def running(root: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(root, port=0)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Supervisor:
    """A supervisor that can be killed without killing the test."""

    process: subprocess.Popen[str]
    server_pid: int
    url: str

    @classmethod
    def start(cls, root: Path, *, user: str | None = None, python: str = sys.executable) -> "Supervisor":
        process = subprocess.Popen(
            [python, "-m", "tests.suite.supervisor", str(root)],
            cwd=HOUSE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=user,
            extra_groups=[] if user else None,
            preexec_fn=processes.die_with_parent(signal.SIGKILL),
            # Another Python than the environment's own finds our packages only when told.
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        pid, _, url = line.partition(" ")
        assert pid.isdigit(), f"it did not start: {line}{process.stdout.read()}"
        return cls(process, int(pid), url.strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def write_rows(url: str, count: int) -> None:
    """Each row is its own durable transaction."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        for n in range(count):
            db.execute("INSERT INTO kept VALUES (%s)", [n])


def count_rows(url: str) -> int:
    with psycopg.connect(url) as db:
        row = db.execute("SELECT count(*) FROM kept").fetchone()
        assert row is not None
        return int(row[0])


def setting(url: str, name: str) -> str:
    with psycopg.connect(url) as db:
        row = db.execute("SELECT current_setting(%s)", [name]).fetchone()
        assert row is not None
        return str(row[0])


def wait_until_gone(pid: int, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while processes.started_at(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_the_wheel_is_what_runs_with_the_settings_we_promise(folder: Path) -> None:
    with running(folder / "pg") as server:
        url = server.url("postgres")

        assert setting(url, "server_version").startswith("18.")
        assert binaries.WHEEL in str(server.programs.folder)
        assert setting(url, "cluster_name") == CLUSTER_NAME
        assert setting(url, "listen_addresses") == "127.0.0.1"
        assert setting(url, "unix_socket_directories") == ""
        assert setting(url, "TimeZone") == "UTC"
        for safety in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert setting(url, safety) == "on", safety
        with psycopg.connect(url) as db:
            locale = db.execute(
                "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'postgres'"
            )
            assert locale.fetchone() == ("b", "C.UTF-8")


def test_nobody_enters_without_the_password_and_only_the_owner_reads_it(folder: Path) -> None:
    with running(folder / "pg") as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url("postgres", password="wrong"))

        assert (folder / "pg" / "password").stat().st_mode & 0o777 == 0o600
        assert not (folder / "pg" / "password.initdb").exists()


def test_a_stop_and_a_start_keep_the_data_and_the_port(folder: Path) -> None:
    with running(folder / "pg") as server:
        write_rows(server.url("postgres"), 10)
        port = server.port

    with running(folder / "pg") as server:
        assert count_rows(server.url("postgres")) == 10
        assert server.port == port


def test_a_killed_postmaster_is_started_again_at_the_same_address(folder: Path) -> None:
    with running(folder / "pg") as server:
        url = server.url("postgres")
        write_rows(url, 50)
        busy = psycopg.connect(url)

        os.kill(server.server_pid(), signal.SIGKILL)
        assert server.process is not None
        server.process.wait(5)
        assert server.has_died()
        server.start()
        busy.close()

        assert server.url("postgres") == url
        assert count_rows(url) == 50


def test_a_killed_supervisor_takes_its_server_with_it_and_loses_nothing(folder: Path) -> None:
    supervisor = Supervisor.start(folder / "pg")
    write_rows(supervisor.url, 50)

    supervisor.kill()

    wait_until_gone(supervisor.server_pid)
    with running(folder / "pg") as server:
        assert count_rows(server.url("postgres")) == 50


@pytest.mark.parametrize("first", ["server", "supervisor"])
def test_both_killed_at_once_come_up_again(folder: Path, first: str) -> None:
    supervisor = Supervisor.start(folder / "pg")
    write_rows(supervisor.url, 50)

    if first == "server":
        os.kill(supervisor.server_pid, signal.SIGKILL)
    supervisor.process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor.server_pid, signal.SIGKILL)
    supervisor.process.communicate()

    with running(folder / "pg") as server:
        assert count_rows(server.url("postgres")) == 50


def test_a_start_does_not_wait_for_a_backend_that_never_noticed_the_crash(folder: Path) -> None:
    supervisor = Supervisor.start(folder / "pg")
    write_rows(supervisor.url, 5)
    busy = psycopg.connect(supervisor.url)
    os.kill(busy.info.backend_pid, signal.SIGSTOP)
    os.kill(supervisor.server_pid, signal.SIGKILL)
    supervisor.kill()

    with running(folder / "pg") as server:
        assert count_rows(server.url("postgres")) == 5
        assert processes.started_at(busy.info.backend_pid) is None
    busy.close()


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(folder: Path) -> None:
    """Pids are used again, and in a container soon."""
    with running(folder / "pg") as server:
        write_rows(server.url("postgres"), 5)
        pid_file = (server.data / "postmaster.pid").read_text()
        os.kill(server.server_pid(), signal.SIGKILL)
    account = Account.for_postgres()
    stranger = subprocess.Popen(["sleep", "60"], user=account.uid if account else None)

    (folder / "pg" / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n" + pid_file.split("\n", 1)[1])
    with running(folder / "pg") as server:
        assert count_rows(server.url("postgres")) == 5

    assert stranger.poll() is None, "the stranger must not be harmed"
    stranger.kill()
    stranger.wait()


def test_a_second_starter_learns_who_holds_the_cluster(folder: Path) -> None:
    supervisor = Supervisor.start(folder / "pg")

    with pytest.raises(AlreadyOwned, match=str(supervisor.process.pid)) as refusal:
        EmbeddedPostgres(folder / "pg").start()

    assert refusal.value.pid == supervisor.process.pid
    supervisor.kill()
    wait_until_gone(supervisor.server_pid)


def test_a_server_that_cannot_start_says_why_at_once(folder: Path) -> None:
    with running(folder / "pg") as server:
        config = server.data / "postgresql.conf"
    config.write_text("no_such_setting = 1\n")

    began = time.monotonic()
    with pytest.raises(PostgresError, match="no_such_setting"):
        EmbeddedPostgres(folder / "pg", port=0).start()

    assert time.monotonic() - began < 12, "trouble that does not pass is not waited for"


def test_a_port_that_was_asked_for_and_is_taken_is_refused_at_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(PostgresError, match=f"port {port} is taken"):
            EmbeddedPostgres(folder / "pg", port=port).start()


def test_a_killed_initdb_leaves_nothing_in_the_way(folder: Path) -> None:
    unfinished = folder / "pg" / "data.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    with running(folder / "pg") as server:
        assert setting(server.url("postgres"), "server_version").startswith("18.")
        assert not unfinished.exists()


def test_two_clusters_live_side_by_side(folder: Path) -> None:
    with running(folder / "one") as one, running(folder / "two") as two:
        write_rows(one.url("postgres"), 1)
        write_rows(two.url("postgres"), 2)

        assert one.port != two.port
        assert (count_rows(one.url("postgres")), count_rows(two.url("postgres"))) == (1, 2)


@pytest.mark.skipif(not AS_ROOT, reason="only root is refused by Postgres and has to drop to nobody")
def test_root_is_told_which_folder_is_closed_to_the_server(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(PostgresError, match=f"may not pass through {closed}"):
        EmbeddedPostgres(closed / "pg").start()


@pytest.mark.skipif(not AS_ROOT, reason="the other tests ran as an ordinary user already")
def test_an_ordinary_user_runs_it_after_root_did(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    account = Account(nobody.pw_uid, nobody.pw_gid)
    python = python_for(account)
    if python is None:
        pytest.skip("this checkout, or every Python like ours, is closed to nobody")
    with running(folder / "of-root") as server:
        write_rows(server.url("postgres"), 1)
    own = folder / "of-nobody"
    own.mkdir()
    os.chown(own, account.uid, account.gid)

    supervisor = Supervisor.start(own / "pg", user="nobody", python=python)
    write_rows(supervisor.url, 5)
    supervisor.kill()
    wait_until_gone(supervisor.server_pid)
    again = Supervisor.start(own / "pg", user="nobody", python=python)

    assert count_rows(again.url) == 5
    assert (own / "pg" / "data").stat().st_uid == account.uid
    again.kill()
    wait_until_gone(again.server_pid)
