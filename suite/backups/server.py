"""The server that is backed up or restored to, and PostgreSQL's programs that talk to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from suite import binaries
from suite.backups.errors import BackupFailed
from suite.files import DataFolder, Runtime
from suite.postgres import ADMIN, EmbeddedPostgres
from suite.processes import die_with_parent
from suite.settings import SuiteSettings

LAST_LINES = 3
_MESSAGES = re.compile(r"^pg_\w+: (error: )?", re.MULTILINE)


class ProgramFailed(Exception):
    """A program of PostgreSQL ended with an error; the message is its own last words."""


@dataclass(frozen=True)
class Server:
    """One database as its administrator reaches it; the password never stands in a command line."""

    conninfo: str  # without the password
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str) -> Server:
        parts = conninfo_to_dict(url)
        password = parts.pop("password", None)
        return cls(make_conninfo("", **parts), None if password is None else str(password))

    def url(self) -> str:
        """For libraries, which keep it to themselves."""
        return make_conninfo(self.conninfo, **({"password": self.password} if self.password else {}))

    @property
    def database(self) -> str:
        parts = conninfo_to_dict(self.conninfo)
        return str(parts.get("dbname") or parts.get("user") or "")

    def in_database(self, name: str) -> Server:
        return replace(self, conninfo=make_conninfo(self.conninfo, dbname=name))

    def connect(self) -> psycopg.Connection:
        """In autocommit."""
        return psycopg.connect(self.url(), autocommit=True, connect_timeout=10)

    def run(self, program: str, *arguments: str, output: int | IO[bytes] = subprocess.PIPE) -> str:
        """What it printed, unless that went to `output`; ProgramFailed when it did not succeed."""
        return run(program, "--no-password", f"--dbname={self.conninfo}", *arguments,
                   output=output, password=self.password)  # fmt: skip


def run(
    program: str,
    *arguments: str,
    output: int | IO[bytes] = subprocess.PIPE,
    password: str | None = None,
) -> str:
    """A program of PostgreSQL to its end; it dies with us."""
    environment = {**os.environ, "LC_ALL": "C"}
    if password is not None:
        environment["PGPASSWORD"] = password
    process = subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches us, and we end it below
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    try:
        printed, complaints = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        raise ProgramFailed(_last_words(program, process.returncode, complaints.decode(errors="replace")))
    return (printed or b"").decode(errors="replace")


def _last_words(program: str, status: int, complaints: str) -> str:
    name = program.rpartition("/")[2]
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    said = _MESSAGES.sub("", complaints).strip().splitlines()[-LAST_LINES:]
    return f"{name} {how}" + "".join(f"\n  {line}" for line in said)


def programs_for(db: psycopg.Connection) -> binaries.Binaries:
    """PostgreSQL's programs of the server's own version, or else newer ones: older ones cannot read it."""
    major = db.info.server_version // 10_000
    try:
        return binaries.find(major=major)
    except binaries.NoPostgres:
        found = binaries.find()
    if found.major < major:
        raise BackupFailed(
            f"the server is PostgreSQL {major}, and the newest programs here are {found.major} (in {found.folder}): "
            f"install the client programs of PostgreSQL {major}"
        )
    return found


@contextmanager
def ours(settings: SuiteSettings, folder: DataFolder) -> Iterator[Server]:
    """The database of this suite; an embedded one that does not run is started for the duration."""
    if settings.database_url:
        yield Server.of(settings.database_url.get_secret_value())
        return
    runtime = Runtime.of_running_suite(folder)
    if runtime is not None and not runtime.database.embedded:
        raise BackupFailed("the suite runs on a server of your own: set DATABASE_URL as it was set there")
    if runtime is not None:
        password = quote((folder.postgres / "password").read_text(), safe="")
        place = f"{runtime.database.host}:{runtime.database.port}"
        yield Server.of(f"postgresql://{ADMIN}:{password}@{place}/{runtime.database.name}")
        return
    if not (folder.postgres / "data").exists():
        raise BackupFailed(f"there is no database in {folder.postgres}: set DATABASE_URL or BILLING_DATA_DIR")
    with _alone_in(folder), embedded(folder) as server:
        yield server


@contextmanager
def embedded(folder: DataFolder) -> Iterator[Server]:
    """An embedded server with its database, for as long as this lasts."""
    server = EmbeddedPostgres(folder.postgres, port=0)
    server.start()
    try:
        server.create_database(ADMIN)
        yield Server.of(server.url())
    finally:
        server.stop()


@contextmanager
def _alone_in(folder: DataFolder) -> Iterator[None]:
    lock = folder.lock()
    if lock is None:
        raise BackupFailed(f"process {folder.holder()} is starting or stopping the suite: try again")
    with lock:
        yield
