"""Incidents on the running suite, and `billctl fix …` as this process runs it: a dozen of shells would cost a minute."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from click.testing import Result
from typer.testing import CliRunner

from billctl.app import app
from suite.postgres import ADMIN
from tests.billctl.conftest import ACTOR, Books
from tests.journeys.test_kill import Clients, clients_of
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

# What a diagnosis must leave as it is: a row more, or a row written again, shows.
KEPT = (
    *(
        "subscriptions",
        "provider_subscriptions",
        "payments",
        "billing_refunds",
        "billing_reconciliation_queue",
    ),
    *("credit_transactions", "credit_grants", "tenant_services", "idempotency_keys", "billing_notifications"),
    *("webhook_events", "webhook_dead_letter_queue"),
    # A job's dry run is a run, and noted as one that did nothing.
    "billing_audit_log WHERE NOT COALESCE((metadata -> 'after' ->> 'dry_run')::boolean, false)",
)
# The provider tells of a refund or an end a moment after it.
QUIET_SECONDS, SETTLED_SECONDS = 0.5, 15.0
ORDER = ("--apply", "--actor", ACTOR, "--reason", "a test of the runbook")


@dataclass(frozen=True)
class Fixer:
    """Somebody who types `billctl fix`."""

    suite: RunningSuite
    books: Books

    def typed(self, *words: str) -> Result:
        """What came of it; a traceback is no answer."""
        environment = {"BILLING_DATA_DIR": str(self.suite.data_dir)}
        done = CliRunner().invoke(app, ["fix", *words], env=environment)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def told(self, *words: str, exit: int) -> dict[str, Any]:
        done = self.typed(*words, "--json")
        assert done.exit_code == exit, done.output
        content: dict[str, Any] = json.loads(done.stdout)
        assert content["exit"] == exit
        return content

    def looked(self, *words: str, exit: int) -> dict[str, Any]:
        """The same without --apply; nothing may be another afterwards."""
        before = self.standing()
        content = self.told(*words, exit=exit)
        assert self.standing() == before
        assert not content["carried_out"]
        return content

    def applied(self, *words: str, ticket: str, exit: int = 0) -> dict[str, Any]:
        return self.told(*words, *ORDER, "--ticket", ticket, exit=exit)

    def applied_twice(self, *words: str, ticket: str) -> dict[str, Any]:
        """Carried out, and once more under the same ticket, which changes nothing and finds everything well."""
        first = self.applied(*words, ticket=ticket)
        before = self.settled()
        again = self.applied(*words, ticket=ticket)
        assert self.standing() == before
        assert (again["verdict"], again["plan"]) == ("ok", [])
        return first

    def settled(self) -> list[dict[str, Any]]:
        """The same once what the provider told of the change was heard."""
        ends_at = time.monotonic() + SETTLED_SECONDS
        while True:
            before = self.standing()
            time.sleep(QUIET_SECONDS)
            waiting = self.books.rows("SELECT 1 FROM webhook_events WHERE NOT processed LIMIT 1")
            if (not waiting and self.standing() == before) or time.monotonic() > ends_at:
                return before

    def standing(self) -> list[dict[str, Any]]:
        """How many rows there are, and the last transaction that wrote one."""
        counted = " UNION ALL ".join(
            f"SELECT '{table.split()[0]}' AS name, COUNT(*) AS n, MAX(xmin::text::bigint) AS written FROM {table}"
            for table in KEPT
        )
        return self.books.rows(counted)

    def audited(self, ticket: str, action: str) -> list[dict[str, Any]]:
        """The lines of that ticket; each says who and why."""
        lines = self.books.rows(
            "SELECT resource_id, actor_id, metadata ->> 'reason' AS reason FROM billing_audit_log"
            " WHERE action = %s AND metadata ->> 'reason' LIKE %s ORDER BY created_at",
            *(action, f"{ticket}: %"),
        )
        assert {(line["actor_id"], line["reason"]) for line in lines} == {
            (ACTOR, f"{ticket}: a test of the runbook")
        }
        return lines

    def by_hand(self, statement: str, *values: Any) -> None:
        """What only an administrator could do: the incident itself."""
        note = self.suite.runtime["database"]
        place = {"host": note["host"], "port": note["port"], "dbname": note["name"], "user": ADMIN}
        password = (self.suite.data_dir / "postgres" / "password").read_text()
        with psycopg.connect(**place, password=password, autocommit=True) as db:
            db.execute(statement, values)


async def act(clients: Clients, happening: str, **body: Any) -> Any:
    """Something that happens at the provider."""
    answer = await clients.sandbox.post(f"/_sandbox/{happening}", json=body)
    answer.raise_for_status()
    return answer.json() if answer.content else None


async def provisioned(clients: Clients, tenant: str) -> None:
    await clients.subscriptions.ProvisionTenant(
        pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )


async def begun(clients: Clients, tenant: str, plan: str) -> str:
    """A purchase that is not paid; answers the provider's subscription."""
    answer = await clients.subscriptions.Checkout(
        pb.CheckoutRequest(
            tenant_id=tenant,
            idempotency_key=f"buy-{plan}",
            plan_code=plan,
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    return str(answer.checkout.subscription_id)


async def until(books: Books, query: str, expected: Any, *values: Any) -> None:
    async def is_so() -> bool:
        [row] = books.rows(query, *values)
        return bool(next(iter(row.values())) == expected)

    await eventually(is_so, seconds=30)


async def bought(fixer: Fixer, tenant: str, plan: str = "pro") -> str:
    """A tenant on a paid plan, with its credits and limits."""
    async with clients_of(fixer.suite) as clients:
        await provisioned(clients, tenant)
        subscription = await begun(clients, tenant, plan)
        await act(clients, f"subscriptions/{subscription}/pay", method="card")
        await heard(fixer, clients)
    await settled(fixer.books, tenant, plan)
    return subscription


async def heard(fixer: Fixer, clients: Clients) -> None:
    """Every event that the provider has told of is decided."""
    await act(clients, "drain", timeout=10)
    await until(fixer.books, "SELECT COUNT(*) FROM webhook_events WHERE NOT processed", 0)


async def settled(books: Books, tenant: str, plan: str) -> None:
    await until(
        books,
        "SELECT COUNT(*) FROM subscriptions s JOIN credit_transactions t USING (tenant_id)"
        " JOIN tenant_credits c USING (tenant_id)"
        " WHERE s.tenant_id = %s AND s.plan_id = %s AND c.plan_code = s.plan_id AND t.reason = 'plan.cycle'",
        *(1, tenant, plan),
    )


async def delivered(suite: RunningSuite, body: bytes, *, secret: str | None = None) -> int:
    """A delivery from the provider, or from somebody who does not know the secret."""
    key = (secret or suite.runtime["secrets"]["razorpay_webhook_secret"]).encode()
    headers = {"x-razorpay-signature": hmac.new(key, body, hashlib.sha256).hexdigest()}
    async with httpx.AsyncClient(base_url=suite.runtime["webhooks_http_url"]) as ingress:
        return (await ingress.post("/webhooks/razorpay", content=body, headers=headers)).status_code


@contextmanager
def broken(fixer: Fixer) -> Iterator[None]:
    """Subscriptions can decide nothing while this lasts."""
    fixer.by_hand("ALTER TABLE subscriptions.processed_payment_events RENAME TO broken")
    try:
        yield
    finally:
        fixer.by_hand("ALTER TABLE subscriptions.broken RENAME TO processed_payment_events")
