"""A small supervisor of an embedded PostgreSQL: one cluster, one server, one owner."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql

from suite import binaries, processes
from suite.addresses import free_port
from suite.binaries import QUIET_ENVIRONMENT, Binaries
from suite.files import write_private
from suite.processes import Account, die_with_parent

ADMIN = "billing"
CLUSTER_NAME = "billing-embedded"
DEFAULT_PORT = 54320
CONNECTIONS_MAX = 200
POLL_SECONDS = 0.02
START_SECONDS_MAX = 60
ORPHAN_SECONDS_MAX = 15
BACKEND_SECONDS_MAX = 1
LOG_BYTES_MAX = 5_000_000
PASSING_TROUBLE = (
    "postmaster.pid",
    "pre-existing shared memory block",
    "could not bind",
    "could not create any TCP",
)
# A statement that failed, its DETAIL and its parameters quote rows; the message and the code tell what happened.
SAYS_NO_VALUES = (
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "log_statement=none",
    "log_min_duration_statement=-1",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
)
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class PostgresError(Exception):
    """The embedded server cannot do what was asked; the message says what to do."""


class AlreadyOwned(PostgresError):
    """Another supervisor holds this cluster."""

    def __init__(self, root: Path, pid: int | None) -> None:
        super().__init__(f"the database in {root} is in use by process {pid or 'unknown'}")
        self.pid = pid


class EmbeddedPostgres:
    """A cluster below `root`, made at the first start; the server dies with this process, whatever kills it.

    Start it from the main thread: the kernel ties the server's life to the thread that forked it.
    """

    def __init__(self, root: Path, *, port: int | None = None, durable: bool = True) -> None:
        """`port`: None means the usual one or, if it is taken, another; 0 means any."""
        self.root = root
        self.data = root / "data"
        self.log = root / "postgres.log"
        self.account = Account.for_postgres()
        self.durable = durable
        self.port = port or 0
        self.process: subprocess.Popen[bytes] | None = None
        self._port_is_fixed = bool(port)
        self._preferred = [DEFAULT_PORT] if port is None else []
        self._binaries: Binaries | None = None
        self._lock: IO[str] | None = None
        self._log_offset = 0
        self._password = ""

    def start(self) -> None:
        """Returns once a real connection succeeded; raises with the log's tail when none will."""
        for pause_seconds in self.starting():
            time.sleep(pause_seconds)

    def starting(self) -> Iterator[float]:
        """`start` in steps, for a caller with other things to do: sleep for each number of seconds."""
        is_first = self._lock is None
        if is_first:
            self._acquire()
        try:
            yield from self._wait_for_orphans()
            if is_first and self._port_is_fixed and free_port([self.port]) != self.port:
                raise PostgresError(
                    f"port {self.port} is taken by another program; choose another for PostgreSQL "
                    "(BILLING_POSTGRES_PORT), or leave it unset and a free one is chosen"
                )
            yield from self._launch()
        except PostgresError:
            self.stop()
            raise
        self._port_is_fixed = True  # callers hold the URL now

    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Fast shutdown, harder when it does not help; gives the cluster back."""
        if self.process is not None:
            for attempt, patience_seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
                if self.process.poll() is not None:
                    break
                self.process.send_signal(attempt)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience_seconds)
            self.process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def url(self, database: str = ADMIN, *, user: str = ADMIN, password: str | None = None) -> str:
        """The address of a database here; by default the administrator's."""
        return f"postgresql://{user}:{password or self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Creates it unless it is there."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            if db.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return
            statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
            if template:
                statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
            db.execute(statement)

    def server_pid(self) -> int:
        if self.process is None:
            raise PostgresError("the server was not started")
        return self.process.pid

    @property
    def programs(self) -> Binaries:
        """The installation that this cluster runs on, as its account reaches it."""
        if self._binaries is None:
            raise PostgresError("the server was not started")
        return self._binaries

    # -- becoming the owner ------------------------------------------------------------------------------

    def _acquire(self) -> None:
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._assert_reachable()
            self._lock = self._take_lock()
        except PermissionError as error:
            raise PostgresError(
                f"{error.filename} is not writable for this user. If another user ran the suite in "
                "this checkout, remove that folder as that user, or use another checkout."
            ) from error
        try:
            self._prepare()
        except BaseException:
            self.stop()
            raise

    def _assert_reachable(self) -> None:
        """initdb would only say "permission denied", and not where."""
        if self.account is None:
            return
        for folder in (self.root.resolve(), *self.root.resolve().parents):
            if not self.account.can_enter(folder):
                raise PostgresError(
                    "PostgreSQL refuses root, so it runs as `nobody`, who may not pass through "
                    f"{folder}. Allow it (chmod o+x {folder}) or choose another place with BILLING_DATA_DIR."
                )

    def _take_lock(self) -> IO[str]:
        lock = (self.root / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise AlreadyOwned(self.root, int(holder) if holder.isdigit() else None) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _prepare(self) -> None:
        version = self.data / "PG_VERSION"
        major = int(version.read_text()) if version.exists() else None
        found = binaries.find(major=major)
        self._binaries = binaries.private_copy(found, self.root, self.account) if self.account else found
        password_file = self.root / "password"
        if major is None:
            self._password = secrets.token_urlsafe(24)
            write_private(password_file, self._password)
            self._create_cluster()
        elif password_file.exists():
            self._password = password_file.read_text()
        else:
            raise PostgresError(f"{password_file} is gone, and without it nobody can administer {self.data}")

    def _create_cluster(self) -> None:
        """initdb beside the final place, then one rename: a killed initdb leaves nothing half made."""
        unfinished = self.root / "data.new"
        password_file = self.root / "password.initdb"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_private(password_file, self._password)
        unfinished.mkdir(mode=0o700)
        if self.account:
            os.chown(unfinished, self.account.uid, self.account.gid)
            os.chown(password_file, self.account.uid, self.account.gid)
        command = [self.programs.program("initdb"), "-D", str(unfinished), "-U", ADMIN]
        command += ["--pwfile", str(password_file), "-A", "scram-sha-256", "-E", "UTF8", "--data-checksums"]
        command += ["--locale=C"]
        if self.programs.major >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self.durable:
            command += ["--no-sync"]
        answer = self._popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = answer.communicate()
        password_file.unlink()
        if answer.returncode != 0:
            raise PostgresError(f"initdb failed:\n{output.decode(errors='replace')}")
        unfinished.rename(self.data)

    # -- running the server ------------------------------------------------------------------------------

    def _wait_for_orphans(self) -> Iterator[float]:
        """The lock is ours, so whoever still works on the data lost its supervisor and is about to go."""
        data = self.data.resolve()
        began = time.monotonic()
        while survivors := processes.living_in(data):
            waited_seconds = time.monotonic() - began
            postmaster = self._postmaster_pid()
            if waited_seconds > ORPHAN_SECONDS_MAX:
                raise PostgresError(
                    f"another server still runs on {data}: process {postmaster or survivors[0]}"
                )
            if postmaster not in survivors:
                # Backends of a killed postmaster may be busy or stopped and notice nothing; what they have not
                # committed is lost to their clients already, and recovery follows.
                sign = signal.SIGQUIT if waited_seconds < BACKEND_SECONDS_MAX else signal.SIGKILL
                for pid in survivors:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sign)
            yield POLL_SECONDS
        # Nobody is left, so the file is the dead's; a zombie's pid, or a reused one, would block us for ever.
        if Path("/proc/self").exists():
            (data / "postmaster.pid").unlink(missing_ok=True)

    def _postmaster_pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _launch(self) -> Iterator[float]:
        deadline = time.monotonic() + START_SECONDS_MAX
        troubles_end = time.monotonic() + ORPHAN_SECONDS_MAX
        self._spawn()
        while not self._answers():
            if self.has_died():
                tail = self._log_tail()
                if time.monotonic() > troubles_end or not any(sign in tail for sign in PASSING_TROUBLE):
                    raise PostgresError(f"PostgreSQL did not start:\n{tail}")
                yield 0.25
                self._spawn()
            elif time.monotonic() > deadline:
                raise PostgresError(
                    f"PostgreSQL does not answer after {START_SECONDS_MAX} s:\n{self._log_tail()}"
                )
            yield POLL_SECONDS

    def _spawn(self) -> None:
        self._choose_port()
        options = [f"cluster_name={CLUSTER_NAME}", f"max_connections={CONNECTIONS_MAX}", f"port={self.port}"]
        # TCP on loopback only; without a unix socket no path can be too long or somebody else's.
        options += [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "timezone=UTC",
            "log_timezone=UTC",
            *SAYS_NO_VALUES,
        ]
        options += [] if self.durable else NOT_DURABLE
        command = [self.programs.program("postgres"), "-D", str(self.data.resolve())]
        for option in options:
            command += ["-c", option]
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.unlink()
        # Some messages quote a value all the same, as "invalid input syntax" does.
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._log_offset = log.tell()
            self.process = self._popen(
                command, stdout=log, stderr=log, preexec_fn=die_with_parent(signal.SIGQUIT)
            )

    def _choose_port(self) -> None:
        """The last port again if it is free, so that noted addresses stay true over restarts."""
        if self._port_is_fixed:
            return
        note = self.root / "port"
        last = [int(note.read_text())] if note.exists() else []
        self.port = free_port([*last, *self._preferred])
        note.write_text(str(self.port))

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=2) as db:
                name = db.execute("SHOW cluster_name").fetchone()
        except psycopg.OperationalError:
            return False
        return name == (CLUSTER_NAME,)

    def _log_tail(self, lines: int = 15) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_offset)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def _popen(
        self,
        command: list[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        preexec_fn: Callable[[], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd="/",
            env=QUIET_ENVIRONMENT,
            start_new_session=True,
            preexec_fn=preexec_fn,
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )
