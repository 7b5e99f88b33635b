"""What every test may ask for: a database, a tenant, secrets, and the whole suite running."""

# Before any import of ours: no setting of the machine reaches a test, and no test leans on a UTC machine.
# ruff: noqa: E402
import os
import time

OURS = (
    *(
        "LEDGER_",
        "SUBSCRIPTIONS_",
        "WEBHOOKS_",
        "SCHEDULER_",
        "SANDBOX_",
        "RAZORPAY_",
        "BILLING_",
        "OPERATOR_",
    ),
    *(
        "GATEWAY_SECRET",
        "ROOM_SECRET",
        "READONLY_",
        "DATABASE_URL",
        "LOG_LEVEL",
        "REFLECTION",
        "ADMIN_",
        "PG",
        "OTEL_",
    ),
)
for name in [name for name in os.environ if name.startswith(OURS) or name.lower().endswith("_proxy")]:
    del os.environ[name]
# Read when grpc is imported: tests fork only to start programs, and grpc would complain of it in their output.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
os.environ["TZ"] = "America/New_York"
time.tzset()

import fcntl
import json
import logging
import secrets as random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

from suite.binaries import NoPostgres
from suite.migrate import LOGINS, migrate
from suite.postgres import EmbeddedPostgres, PostgresError
from tests.suite.running import RunningSuite

# Under a failure stands what was logged before it: warnings, and tracebacks without every variable's value.
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
)

CLUSTER = "TEST_CLUSTER"
CLUSTER_PREFIX = "billing-test-"
TEMPLATE = "template_billing"

# Files that belong to one worker: the running suite is one and the same, and operators' tests share rooms.
TOGETHER = {
    "tests/journeys/": "the running suite",
    "tests/deploy/": "the running suite",
    "tests/suite/test_launcher.py": "the running suite",
    "tests/operators/": "operators",
    "tests/billctl/": "billctl",
}


class Cluster:
    """The PostgreSQL of this test run: started once, by the process that all workers descend from."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=CLUSTER_PREFIX))
        self.folder.chmod(0o711)  # as root the server is `nobody`, who must get in
        self.server = EmbeddedPostgres(self.folder / "postgres", port=0, durable=False)

    def start(self) -> None:
        self.server.start()
        note = {
            "admin_url": self.server.url("postgres"),
            "passwords": {role: random.token_urlsafe(18) for role in LOGINS},
            "folder": str(self.folder),
        }
        os.environ[CLUSTER] = json.dumps(note)

    def stop(self) -> None:
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)  # another run may be clearing it away already


_cluster: Cluster | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _cluster
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    _remove_leavings_of_killed_runs()
    try:
        _cluster = Cluster()
        _cluster.start()
    except (NoPostgres, PostgresError) as error:
        pytest.exit(f"the tests need a PostgreSQL: {error}", returncode=2)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> "ByFile":
    """Whole files go to a worker: what they share is started once."""
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):
    """One worker for each file, and one for all files that need the same costly thing.

    The marks of `--dist loadgroup` do nothing under pytest 9.2 (pytest-xdist #1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return next((group for path, group in TOGETHER.items() if file.startswith(path)), file)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _cluster is not None:
        _cluster.stop()


def _remove_leavings_of_killed_runs() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{CLUSTER_PREFIX}*"):
        try:
            with (folder / "postgres" / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:
            continue  # alive, just being made, or another user's


@dataclass(frozen=True)
class Database:
    """One migrated database of one test worker."""

    admin_url: str
    passwords: dict[str, str]

    def url(self, role: str) -> str:
        """How a role connects: `<room>_rw`, billing_operator or billing_readonly."""
        address = urlsplit(self.admin_url)
        return urlunsplit(
            address._replace(netloc=f"{role}:{self.passwords[role]}@{address.hostname}:{address.port}")
        )


@pytest.fixture(scope="session")
def database(worker_id: str) -> Database:
    """A migrated database that only this worker uses; tests keep apart by their tenants."""
    note = json.loads(os.environ[CLUSTER])
    with (Path(note["folder"]) / "template.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_template(note)
        name = f"billing_{worker_id}"
        _create_database(note["admin_url"], name, template=TEMPLATE)
    return Database(_in_database(note["admin_url"], name), note["passwords"])


def _make_template(note: dict) -> None:
    done = Path(note["folder"]) / "template.done"
    if done.exists():
        return
    _create_database(note["admin_url"], TEMPLATE)
    migrate(_in_database(note["admin_url"], TEMPLATE), note["passwords"])
    done.touch()


def _create_database(admin_url: str, name: str, *, template: str = "template0") -> None:
    with psycopg.connect(admin_url, autocommit=True) as db:
        db.execute(f"DROP DATABASE IF EXISTS {name}")
        db.execute(f"CREATE DATABASE {name} TEMPLATE {template}")


def _in_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test knows."""
    return f"tenant_{random.token_hex(6)}"


@dataclass(frozen=True)
class Secrets:
    """Keys for rooms that a test starts itself; the running suite has its own, in `runtime`."""

    gateway: str
    operator: str
    room: str
    razorpay_key_id: str
    razorpay_key_secret: str
    razorpay_webhook_secret: str


@pytest.fixture(scope="session")
def secrets() -> Secrets:
    return Secrets(
        gateway="gateway-" + random.token_urlsafe(18),
        operator="operator-" + random.token_urlsafe(18),
        room="room-" + random.token_urlsafe(18),
        razorpay_key_id="rzp_test_" + random.token_hex(7),
        razorpay_key_secret=random.token_urlsafe(18),
        razorpay_webhook_secret=random.token_urlsafe(18),
    )


@pytest.fixture(scope="session")
def running_suite() -> Iterator[RunningSuite]:
    """The real launcher with all its processes, on free ports. Files that ask for it stand in TOGETHER."""
    folder = Path(tempfile.mkdtemp(prefix="billing-suite-"))
    folder.chmod(0o711)
    suite = RunningSuite(folder)
    try:
        suite.start()
        yield suite
    finally:
        suite.stop()
        shutil.rmtree(folder, ignore_errors=True)
