"""From an operator's call to the ledger: a replay mends once what was ignored for a cause that is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from billing.ledger.v1 import ledger_pb2 as ledger_pb
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from billing.webhooks.v1 import webhooks_admin_pb2 as admin_pb
from billing.webhooks.v1 import webhooks_admin_pb2_grpc as admin_grpc
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr

from shared.rpc.client import open_channel
from suite.postgres import ADMIN
from tests.journeys.test_hostile_deliveries import PRO_CREDITS, paid, post
from tests.journeys.test_kill import Clients, clients_of
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

pytestmark = pytest.mark.xdist_group("suite")


def change(suite: RunningSuite, statement: str, tenant: str) -> None:
    """An incident, staged by the administrator."""
    note = suite.runtime["database"]
    password = (suite.data_dir / "postgres" / "password").read_text()
    with psycopg.connect(
        host=note["host"],
        port=note["port"],
        dbname=note["name"],
        user=ADMIN,
        password=password,
        autocommit=True,
    ) as db:
        db.execute("SET search_path = subscriptions")
        db.execute(statement, {"tenant": tenant})


def outcomes(suite: RunningSuite, since: datetime) -> list[str]:
    """Of every delivery since then; empty while one waits."""
    with psycopg.connect(suite.runtime["database"]["urls"]["billing_operator"]) as db:
        rows = db.execute("SELECT outcome FROM webhook_events WHERE received_at >= %s", [since]).fetchall()
    found = [outcome for (outcome,) in rows]
    return [] if None in found else found


async def balance(clients: Clients, tenant: str) -> int:
    found = (await clients.ledger.GetBalance(ledger_pb.GetBalanceRequest(tenant_id=tenant))).balance
    return sum(bucket.credits for bucket in found.buckets)


def stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


async def test_events_of_a_checkout_that_was_missing_are_replayed_once_it_is_back(
    running_suite: RunningSuite, tenant: str
) -> None:
    suite = running_suite
    began = datetime.now(UTC)
    until = admin_pb.EventRange(received_from=stamp(began), received_until=stamp(began + timedelta(hours=1)))
    wish = {"actor": "asha@example.com", "reason": "the checkout was restored"}
    address, secret = (
        suite.runtime["addresses"]["webhooks"],
        SecretStr(suite.runtime["secrets"]["operator_secret"]),
    )
    async with clients_of(suite) as clients, open_channel(address, secret) as channel:
        operators = admin_grpc.WebhooksAdminServiceStub(channel)
        bodies = await paid(clients, tenant)
        change(suite, "UPDATE checkout_intents SET id = 'lost_' || id WHERE tenant_id = %(tenant)s", tenant)
        change(suite, "DELETE FROM provider_subscriptions WHERE tenant_id = %(tenant)s", tenant)
        for body in bodies:
            await post(suite, clients.ingress, body)

        async def all_are(*words: str) -> bool:
            found = outcomes(suite, began)
            return len(found) == len(bodies) and set(found) <= set(words)

        await eventually(lambda: all_are("ignored"), seconds=20)
        assert await balance(clients, tenant) == 0

        change(
            suite,
            "UPDATE checkout_intents SET id = replace(id, 'lost_', '') WHERE tenant_id = %(tenant)s",
            tenant,
        )
        for turn in range(3):
            answer = await operators.ReplayEvents(
                admin_pb.ReplayEventsRequest(range=until, **wish, idempotency_key=f"{tenant}{turn}")
            )
            assert answer.replayed_count == len(bodies)
            words = (
                ("applied", "superseded", "ignored", "duplicate") if turn == 0 else ("ignored", "duplicate")
            )
            await eventually(lambda words=words: all_are(*words), seconds=20)

            async def is_funded() -> bool:
                return await balance(clients, tenant) == PRO_CREDITS

            await eventually(is_funded, seconds=20)
            current = await clients.subscriptions.GetCurrent(pb.GetCurrentRequest(tenant_id=tenant))
            assert (current.plan_code, current.status) == ("pro", pb.SUBSCRIPTION_STATUS_ACTIVE)
    with psycopg.connect(suite.runtime["database"]["urls"]["billing_operator"]) as db:
        counts = "SELECT (SELECT count(*) FROM {0} WHERE tenant_id = %s)"
        for table, count in (("payments", 1), ("invoices", 1), ("credit_grants", 1)):
            assert db.execute(counts.format(table), [tenant]).fetchone() == (count,)
