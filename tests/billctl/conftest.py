"""One running suite for every test of the operators' command, and the command as an operator's shell runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from billing.subscriptions.v1 import catalog_pb2 as catalog_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from billing.subscriptions.v1.subscriptions_pb2_grpc import SubscriptionsServiceStub
from psycopg.rows import dict_row

from tests.suite.running import HOUSE, RunningSuite

ACTOR = "asha"
FORKING = """
import json, os, sys
from billctl.app import main

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags), number)
        sys.argv = ["billctl", *asked["words"]]
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1 if end.code else 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ready:
    """A process that has imported billctl and forks for each command: an import costs more than most commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            cwd=HOUSE,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{HOUSE}:{HOUSE / 'gen'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, words: list[str], environment: dict[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """As `python -m billctl <words>` would."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        out, err = self.folder / "stdout", self.folder / "stderr"
        asked = {"words": words, "env": environment, "cwd": str(cwd), "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@dataclass
class Shell:
    """A shell that knows a suite by the environment alone, in a folder that is nobody's checkout."""

    suite: RunningSuite
    folder: Path
    ready: Ready
    tickets: int = field(default=0)

    @property
    def environment(self) -> dict[str, str]:
        runtime = self.suite.runtime
        rooms = {f"{room.upper()}_ADDRESS": address for room, address in runtime["addresses"].items()}
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{HOUSE}:{HOUSE / 'gen'}",
            "BILLING_DATA_DIR": str(self.folder / "no-suite-is-here"),
            "OPERATOR_SECRET": runtime["secrets"]["operator_secret"],
            "READONLY_DATABASE_URL": runtime["database"]["urls"]["billing_readonly"],
            **rooms,
        }

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`billctl <words>`; no secret is ever in what it prints."""
        done = self.ready.run(list(words), self.environment | environment, self.folder)
        assert "Traceback" not in done.stderr, done.stderr
        for secret in (*self.suite.runtime["secrets"].values(), "no_such_password"):
            assert secret not in done.stdout + done.stderr
        return done

    def told(self, *words: str, exit: int = 0, **environment: str) -> dict[str, Any]:
        """What `billctl <words> --json` says."""
        done = self.run(*words, "--json", **environment)
        assert done.returncode == exit, done.stdout + done.stderr
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def begin_upgrade(self, tenant: str) -> str:
        """A new tenant that begins to buy Pro and does not pay; answers the provider's subscription."""
        runtime = self.suite.runtime
        with grpc.insecure_channel(runtime["addresses"]["subscriptions"]) as channel:
            product = SubscriptionsServiceStub(channel)
            key = [("x-gateway-key", runtime["secrets"]["gateway_secret"])]
            product.ProvisionTenant(
                pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="new"), metadata=key, timeout=10
            )
            begun = product.Checkout(
                pb.CheckoutRequest(
                    tenant_id=tenant,
                    idempotency_key="buy",
                    plan_code="pro",
                    cycle=catalog_pb.BILLING_CYCLE_MONTHLY,
                ),
                metadata=key,
                timeout=10,
            )
        return str(begun.checkout.subscription_id)

    def applied(self, *words: str, exit: int = 0) -> dict[str, Any]:
        """The same, carried out under a ticket of its own."""
        self.tickets += 1
        ticket = ("--ticket", f"T-{self.tickets}", "--reason", "a test", "--actor", ACTOR)
        return self.told(*words, "--apply", *ticket, exit=exit)


@dataclass(frozen=True)
class Books:
    """The suite's database, as any of its roles."""

    urls: Mapping[str, str]

    def rows(self, statement: str, *values: Any, role: str = "billing_operator") -> list[dict[str, Any]]:
        with psycopg.connect(self.urls[role], autocommit=True, row_factory=dict_row) as db:
            answer = db.execute(statement, values or None)
            return answer.fetchall() if answer.description else []

    def open_finding(self, finding_id: str, check_type: str, tenant: str, **observed: Any) -> None:
        """A finding of the subscriptions room, as its audit writes one."""
        self.rows(
            "INSERT INTO billing_integrity_reports (id, room, tenant_id, check_type, severity, observed)"
            " VALUES (%s, 'subscriptions', %s, %s, 'critical', %s)",
            *(finding_id, tenant, check_type, json.dumps(observed)),
            role="subscriptions_rw",
        )


@pytest.fixture(scope="session")
def suite() -> Iterator[RunningSuite]:
    folder = Path(tempfile.mkdtemp(prefix="billing-suite-"))
    folder.chmod(0o711)
    # Whoever tests types more than a hundred commands in a quarter of an hour.
    running = RunningSuite(
        folder,
        ADMIN_CALLS_PER_15_MINUTES="0",
        WEBHOOKS_DELIVERY_ATTEMPTS="2",
        WEBHOOKS_DELIVERY_BACKOFF_SECONDS="0.05",
    )
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shell(suite: RunningSuite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    ready = Ready(tmp_path_factory.mktemp("output"))
    try:
        yield Shell(suite, tmp_path_factory.mktemp("elsewhere"), ready)
    finally:
        ready.stop()


@pytest.fixture(scope="session")
def books(suite: RunningSuite) -> Books:
    return Books(suite.runtime["database"]["urls"])


@pytest.fixture(scope="session")
def customer(suite: RunningSuite, books: Books) -> str:
    """A tenant with a life: it bought, spent, held, was given back and changed its plan."""
    done = subprocess.run(
        [sys.executable, "-m", "suite", "demo"],
        cwd=HOUSE,
        env=suite.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (newest,) = books.rows(
        r"SELECT tenant_id FROM subscriptions WHERE tenant_id LIKE 'demo\_%' ORDER BY created_at DESC LIMIT 1"
    )
    return str(newest["tenant_id"])
