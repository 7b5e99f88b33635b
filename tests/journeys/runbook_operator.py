"""Somebody with the page of runbooks in hand, in a shell and in psql, beside a suite of their own."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
from billing.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from billing.subscriptions.v1 import subscriptions_admin_pb2, subscriptions_admin_pb2_grpc
from pydantic import SecretStr

from shared.errors import FailedPrecondition
from shared.rpc.client import open_channel
from suite.postgres import ADMIN
from tests.journeys import shell
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

CUT = "---- end of block ----"

# What stands in the page for an id or a moment of the incident, and what it is this time.
Given = dict[str, str]
Incident = Callable[["Operator"], Awaitable[Given | None]]


class Operator:
    """Types what the page says."""

    def __init__(self, suite: RunningSuite) -> None:
        self.suite = suite
        self.given: Given = {}
        self.status = 0  # of what was typed last
        self._staged: dict[Incident, Given] = {}

    async def lives_through(self, *incidents: Incident) -> None:
        """Each of them happens, unless it has happened already, and the page speaks of these."""
        self.given = {}
        for incident in incidents:
            if incident not in self._staged:
                self._staged[incident] = await incident(self) or {}
            self.given |= self._staged[incident]

    def types(self, kind: str, typed: str, helpers: str) -> str:
        """What came of one fence."""
        self.status = 0
        return self._sql(typed) if kind == "sql" else self._shell(helpers, typed)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Another look, not from the page."""
        with psycopg.connect(self._url) as db:
            return db.execute(query, values).fetchall()

    def edit(self, statement: str, *values: Any) -> None:
        """What an operator does by hand in psql."""
        with psycopg.connect(self._url, autocommit=True) as db:
            assert db.execute(statement, values).rowcount > 0, "nothing was edited"

    def break_or_mend(self, statement: str, *values: Any) -> None:
        """What only the administrator of the database can do."""
        note = self.suite.runtime["database"]
        password = (self.suite.data_dir / "postgres" / "password").read_text()
        with psycopg.connect(
            host=note["host"],
            port=note["port"],
            dbname=note["name"],
            user=ADMIN,
            password=password,
            autocommit=True,
        ) as db:
            db.execute(statement, values)

    async def runs(self, job: str) -> None:
        """A job has run to its end, under a key that no page uses."""
        secret = SecretStr(self.suite.runtime["secrets"]["operator_secret"])
        async with open_channel(self.suite.runtime["addresses"]["scheduler"], secret) as channel:
            scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            key = f"staged-{job}-{datetime.now(UTC).timestamp()}"
            request = scheduler_pb2.RunJobRequest(job=job, idempotency_key=key, actor="night")

            async def ended() -> scheduler_pb2.Run | None:
                try:
                    return (await scheduler.RunJob(request, timeout=60)).run
                except FailedPrecondition:  # a tick of its own runs just now
                    return None

            run = await eventually(ended, seconds=30)
        assert run.outcome == scheduler_pb2.RUN_OUTCOME_SUCCEEDED, run

    async def pauses(self, job: str) -> None:
        """A job's ticks have ended, and nobody remembers why."""
        secret = SecretStr(self.suite.runtime["secrets"]["operator_secret"])
        async with open_channel(self.suite.runtime["addresses"]["scheduler"], secret) as channel:
            request = scheduler_pb2.PauseJobRequest(
                job=job, idempotency_key=f"staged-{job}", actor="night", reason="a deploy"
            )
            await scheduler_pb2_grpc.SchedulerServiceStub(channel).PauseJob(request)

    async def asks_to_cancel(self, tenant: str, subscription_id: str) -> None:
        """Somebody wanted a provider's subscription ended before."""
        secret = SecretStr(self.suite.runtime["secrets"]["operator_secret"])
        async with open_channel(self.suite.runtime["addresses"]["subscriptions"], secret) as channel:
            request = subscriptions_admin_pb2.CancelOrphanSubscriptionRequest(
                tenant_id=tenant,
                subscription_id=subscription_id,
                idempotency_key="T-0",
                actor="night",
                reason="T-0: a second subscription",
            )
            admin = subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub(channel)
            await admin.CancelOrphanSubscription(request)

    async def rebuilds(self, tenant: str) -> None:
        """A tenant's limits have become those of its plan of now."""
        secret = SecretStr(self.suite.runtime["secrets"]["operator_secret"])
        async with open_channel(self.suite.runtime["addresses"]["subscriptions"], secret) as channel:
            request = subscriptions_admin_pb2.RebuildEntitlementsRequest(
                tenant_id=tenant, idempotency_key="staged", actor="night", reason="by mistake"
            )
            admin = subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub(channel)
            await admin.RebuildEntitlements(request)

    async def post(self, body: bytes, *, secret: bytes | None = None) -> int:
        """A delivery from the provider, or from somebody who does not know the secret."""
        secret = secret or self.suite.runtime["secrets"]["razorpay_webhook_secret"].encode()
        headers = {
            "x-razorpay-signature": hmac.new(secret, body, hashlib.sha256).hexdigest(),
            "user-agent": "curl/8.5.0",
        }
        async with httpx.AsyncClient(base_url=self.suite.runtime["webhooks_http_url"]) as ingress:
            return (await ingress.post("/webhooks/razorpay", content=body, headers=headers)).status_code

    async def until(self, query: str, expected: Any, *values: Any) -> None:
        """A look's only value has become this."""

        async def is_so() -> bool:
            return self.rows(query, *values) == [(expected,)]

        await eventually(is_so, seconds=30)

    @property
    def _url(self) -> str:
        url: str = self.suite.runtime["database"]["urls"]["billing_operator"]
        return url

    def _filled_in(self, typed: str) -> str:
        for placeholder, value in self.given.items():
            typed = typed.replace(placeholder, value)
        return typed

    def _shell(self, helpers: str, typed: str) -> str:
        told = shell.typed(self.suite, f"{helpers}\necho '{CUT}'\n{self._filled_in(typed)}")
        self.status = told.returncode
        return told.stdout.split(f"{CUT}\n")[-1] + told.stderr

    def _sql(self, typed: str) -> str:
        """The last rows of a fence as psql prints them; where there are none, how each statement ended."""
        with psycopg.connect(self._url, autocommit=True) as db:
            cursor = db.execute(self._filled_in(typed))
            lines: list[str] = []
            while True:
                lines += _printed(cursor)
                if not cursor.nextset():
                    return "\n".join(lines)


def _printed(cursor: psycopg.Cursor[Any]) -> list[str]:
    if cursor.description is None:
        return [cursor.statusmessage or ""]
    header = " | ".join(column.name for column in cursor.description)
    return [header, *(" | ".join("" if value is None else _word(value) for value in row) for row in cursor)]


def _word(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bool):
        return "t" if value else "f"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
