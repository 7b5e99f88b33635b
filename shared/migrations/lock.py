"""One migration at a time in a cluster."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared.migrations.errors import MigrationFailed

# Advisory locks belong to the database of the session that takes them, but roles belong to the cluster. So
# two locks: one in `postgres`, where runners for different databases of a cluster meet, and one in the
# target, which still serialises its runners where `postgres` was dropped or is closed to the administrator.
MEETING_PLACE = "postgres"
CLUSTER_KEY = 0x62696C6C_00000001
DATABASE_KEY = 0x62696C6C_00000002
POLL_SECONDS = 0.05


@contextmanager
def cluster_lock(conninfo: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold the right to create roles and migrate, or raise MigrationFailed after `wait_seconds`."""
    with ExitStack() as stack:
        deadline = time.monotonic() + wait_seconds
        if conninfo_to_dict(conninfo).get("dbname") != MEETING_PLACE:
            try:
                meeting = psycopg.connect(make_conninfo(conninfo, dbname=MEETING_PLACE), autocommit=True)
            except psycopg.OperationalError:
                pass  # the lock in the target follows
            else:
                _hold(stack.enter_context(meeting), CLUSTER_KEY, deadline)
        target = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
        _hold(target, DATABASE_KEY, deadline)
        yield


def _hold(connection: psycopg.Connection, key: int, deadline: float) -> None:
    # Asking again and again, not pg_advisory_lock: a statement that waits holds a snapshot, and CREATE INDEX
    # CONCURRENTLY in the runner that owns the lock would wait for it for ever. It also ends: a holder that
    # was stopped keeps its lock as long as its socket lives.
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
        if row is not None and row[0]:
            return
        if time.monotonic() >= deadline:
            raise MigrationFailed(
                "another migration holds the lock for too long; find it with: "
                "SELECT pid, database, granted FROM pg_locks WHERE locktype = 'advisory'"
            )
        time.sleep(POLL_SECONDS)
