"""Everything that a run needs: a cluster of its own, databases, and real processes, all gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from suite.migrate import LOGINS, migrate
from suite.postgres import EmbeddedPostgres
from suite.processes import die_with_parent
from suite.rooms import SAMPLE_SELLER

ROOT = Path(__file__).parent.parent
START_SECONDS_MAX = 30.0
TEMPLATE = "bench_template"
LOG_FILES = 48


class World:
    """One run's folder, cluster and keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = EmbeddedPostgres(folder / "postgres", port=0)
        self.passwords = {role: secrets.token_urlsafe(18) for role in LOGINS}
        self.keys = {name: secrets.token_urlsafe(18) for name in ("GATEWAY", "OPERATOR", "ROOM")}
        self.webhook_secret = secrets.token_urlsafe(18)

    @property
    def gateway_key(self) -> str:
        return self.keys["GATEWAY"]

    @property
    def room_key(self) -> str:
        return self.keys["ROOM"]

    @property
    def provider(self) -> dict[str, str]:
        """What everybody is told who knows the provider."""
        return {
            "RAZORPAY_KEY_ID": "rzp_test_bench",
            "RAZORPAY_KEY_SECRET": self.webhook_secret[::-1],
            "RAZORPAY_WEBHOOK_SECRET": self.webhook_secret,
        }

    def admin_url(self, database: str) -> str:
        return self.server.url(database)

    def ledger_url(self, database: str) -> str:
        """As the ledger itself connects."""
        return self.room_url("ledger", database)

    def room_url(self, room: str, database: str) -> str:
        """As a room itself connects."""
        parts, role = urlsplit(self.admin_url(database)), f"{room}_rw"
        return urlunsplit(
            parts._replace(netloc=f"{role}:{self.passwords[role]}@{parts.hostname}:{parts.port}")
        )

    def wear_in(self) -> None:
        """Leaves PostgreSQL a day's worth of log files to use again: making a new one stops everybody for 40 ms."""
        with psycopg.connect(self.admin_url("postgres"), autocommit=True) as db:
            db.execute("ALTER SYSTEM SET min_wal_size = '1GB'")
            db.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
            db.execute("SELECT pg_reload_conf()")
            for _ in range(LOG_FILES):
                db.execute("SELECT pg_logical_emit_message(true, 'bench', 'x'), pg_switch_wal()")
            db.execute("CHECKPOINT")

    def slow_commits(self, milliseconds: float) -> None:
        """Makes every flush of the log take this much longer, as on a disk that is further away."""
        with psycopg.connect(self.admin_url("postgres"), autocommit=True) as db:
            db.execute(f"ALTER SYSTEM SET commit_delay = {round(milliseconds * 1000)}")
            db.execute("ALTER SYSTEM SET commit_siblings = 0")
            db.execute("SELECT pg_reload_conf()")

    def database(self, name: str) -> str:
        """A migrated database of this name."""
        if name == TEMPLATE:
            self.server.create_database(name)
            migrate(self.admin_url(name), self.passwords)
        else:
            self.server.create_database(name, template=TEMPLATE)
        return name

    @contextlib.contextmanager
    def ledger(self, database: str) -> Iterator[str]:
        """`python -m services.ledger` with the settings it ships with; answers its address."""
        address = free_address()
        told = {"LEDGER_LISTEN": address, "LEDGER_DATABASE_URL": self.ledger_url(database)}
        with self._running(f"ledger-{database}", ["services.ledger"], told, address):
            yield address

    @contextlib.contextmanager
    def echo(self) -> Iterator[str]:
        """The echo on the ledger's own server stack; answers its address."""
        address = free_address()
        with self._running("echo", ["bench.echo", address], {}, address):
            yield address

    @contextlib.contextmanager
    def webhooks(
        self, database: str, subscriptions: str, *, delivers: bool = True
    ) -> Iterator[tuple[str, int]]:
        """`python -m services.webhooks` with the settings it ships with, or only its taking in; its address and pid."""
        address = free_address()
        told = {
            "WEBHOOKS_LISTEN": free_address(),
            "WEBHOOKS_HTTP_LISTEN": address,
            "WEBHOOKS_DATABASE_URL": self.room_url("webhooks", database),
            "SUBSCRIPTIONS_ADDRESS": subscriptions,
            **self.provider,
        }
        module = "services.webhooks" if delivers else "bench.undelivered"
        with self._running(f"webhooks-{database}", [module], told, address) as process:
            yield address, process.pid

    @contextlib.contextmanager
    def verifier(self) -> Iterator[tuple[str, int]]:
        """The ingress' own server stack, which only verifies; its address and pid."""
        address = free_address()
        with self._running("verifier", ["bench.verifier", address], self.provider, address) as process:
            yield address, process.pid

    @contextlib.contextmanager
    def applier(self) -> Iterator[str]:
        """Subscriptions that do nothing; their address."""
        address = free_address()
        with self._running("applier", ["bench.applier", address], {}, address):
            yield address

    @contextlib.contextmanager
    def sandbox(self) -> Iterator[str]:
        """`python -m sandbox`; its URL."""
        address = free_address()
        told = {"SANDBOX_LISTEN": address, **self.provider}
        with self._running("sandbox", ["sandbox"], told, address):
            yield f"http://{address}"

    @contextlib.contextmanager
    def subscriptions(self, database: str, ledger: str, provider_url: str) -> Iterator[tuple[str, int]]:
        """`python -m services.subscriptions` with its catalogue applied; its address and pid."""
        address = free_address()
        told = {
            "SUBSCRIPTIONS_LISTEN": address,
            "SUBSCRIPTIONS_DATABASE_URL": self.room_url("subscriptions", database),
            "LEDGER_ADDRESS": ledger,
            "RAZORPAY_API_URL": provider_url,
            **self.provider,
            **SAMPLE_SELLER,
        }
        room = ["services.subscriptions"]
        subprocess.run(
            [sys.executable, "-m", *room, "apply-catalog"],
            env=self._environment(told),
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with self._running(f"subscriptions-{database}", room, told, address) as process:
            yield address, process.pid

    def _environment(self, told: Mapping[str, str]) -> dict[str, str]:
        passed = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ
        }
        return {**passed, **{f"{name}_SECRET": value for name, value in self.keys.items()}, **told}

    @contextlib.contextmanager
    def _running(
        self, name: str, arguments: Sequence[str], told: Mapping[str, str], address: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=self._environment(told),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )
            try:
                wait_for(address, process)
                yield process
            except BaseException:
                sys.stderr.write((self.folder / f"{name}.log").read_text()[-2000:])
                raise
            finally:
                end(process)


class Child:
    """A measuring process, such as `bench.load`."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )

        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a measuring process has no pipes")
        self._to, self._from = self._process.stdin, self._process.stdout

    def ask(self, **order: Any) -> Any:
        self.send(**order)
        return self.receive()

    def send(self, **order: Any) -> None:
        self._to.write(json.dumps(order) + "\n")
        self._to.flush()

    def receive(self) -> Any:
        line = self._from.readline()
        if not line:
            raise RuntimeError("a measuring process ended by itself")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)


@contextlib.contextmanager
def new() -> Iterator[World]:
    """A started world; its folder is removed afterwards, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix="billing-bench-"))
    folder.chmod(0o711)  # as root the server is `nobody`, who must get in
    world = World(folder)
    try:
        world.server.start()
        world.database(TEMPLATE)
        yield world
    finally:
        world.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[Any]) -> None:
    """Asks it to stop, then makes it."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def wait_for(address: str, process: subprocess.Popen[Any]) -> None:
    """Returns when somebody listens there; raises when nobody will."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing answers on {address}") from None
            time.sleep(0.05)


def load_average() -> str:
    """How many processes wanted a processor during the last minute: whoever else is at work is in every figure."""
    return f"{os.getloadavg()[0]:.1f}"


def machine(admin_url: str) -> str:
    """What the figures were measured on, and nothing that names this machine."""
    with psycopg.connect(admin_url) as db:
        version = db.execute("SHOW server_version").fetchone()
        settings = [db.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    durable = ", ".join(
        f"{name} {value[0]}"
        for name, value in zip(("fsync", "synchronous_commit"), settings, strict=True)
        if value
    )
    return (
        f"{os.cpu_count()} CPUs, {gigabytes:.0f} GB, {platform.system()} {platform.release()}, "
        f"PostgreSQL {version[0] if version else '?'} ({durable}), Python {platform.python_version()}"
    )
