"""A database that the first release filled, brought up to date, serves the tenants in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from billing.subscriptions.v1 import (
    catalog_pb2_grpc,
    payment_events_pb2_grpc,
    subscriptions_admin_pb2_grpc,
    subscriptions_maintenance_pb2_grpc,
    subscriptions_pb2_grpc,
)
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as maintenance_pb
from psycopg import sql
from pydantic import SecretStr

from services.subscriptions.clients.razorpay import Razorpay
from services.webhooks.clients import PaymentEvents
from shared import migrations
from shared.rpc.client import open_channel
from suite.migrate import SCHEMAS, migrate
from tests.conftest import CLUSTER, Database, _create_database, _in_database
from tests.ledger.conftest import SECRETS, Travel
from tests.sandbox.running import KEY_ID, KEY_SECRET
from tests.subscriptions.conftest import Room, serving
from tests.subscriptions.life import Life, selling, with_plan

NAME = "billing_first_release"


@pytest.fixture
def first_release(database: Database, tmp_path: Path) -> Database:
    """Every schema as it is, but this room's as the first release left it."""
    note = json.loads(os.environ[CLUSTER])
    _create_database(note["admin_url"], NAME)
    admin_url = _in_database(note["admin_url"], NAME)
    ours = next(schema for schema in SCHEMAS if schema.name == "subscriptions")
    (tmp_path / "versions").mkdir()
    shutil.copy(Path(ours.path) / "versions" / "0001_subscriptions.py", tmp_path / "versions")
    schemas = [replace(ours, path=tmp_path) if schema is ours else schema for schema in SCHEMAS]
    migrations.migrate(admin_url, schemas=schemas, passwords=database.passwords)
    return Database(admin_url, database.passwords)


def copy(tenant: str, source: str, target: str) -> None:
    """A tenant's rows, and the catalogue, as far as the first release had columns for them."""
    with psycopg.connect(source) as old, psycopg.connect(target) as new:
        for db in (old, new):
            db.execute("SET search_path = subscriptions")
        tables = new.execute(
            "SELECT table_name, array_agg(column_name::text), bool_or(column_name = 'tenant_id')"
            " FROM information_schema.columns WHERE table_schema = 'subscriptions'"
            " AND is_identity = 'NO' AND table_name <> 'alembic_version' GROUP BY table_name"
        ).fetchall()
        for table, columns, is_tenants in tables:
            if table == "invoices":  # the first release issued none
                continue
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            rows = old.execute(
                sql.SQL("SELECT row_to_json(t) FROM (SELECT {} FROM {} WHERE {}) t").format(
                    names, sql.Identifier(table), sql.SQL("tenant_id = %s" if is_tenants else "%s <> ''")
                ),
                (tenant,),
            ).fetchall()
            for (row,) in rows:
                new.execute(
                    sql.SQL(
                        "INSERT INTO {0} ({1}) SELECT {1} FROM json_populate_record(NULL::{0}, %s)"
                    ).format(sql.Identifier(table), names),
                    (json.dumps(row),),
                )


@asynccontextmanager
async def upgraded(room: Room, tenant: str, at_first: Database) -> AsyncIterator[Room]:
    """The room of today on what the first release knew of the tenant."""
    copy(tenant, room.admin_url, at_first.admin_url)
    applied = migrate(at_first.admin_url, at_first.passwords)
    assert applied[0] == "subscriptions:0002"
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        serving(at_first, room.ledger.address, razorpay, room.clock) as (address, engine, _),
        open_channel(address, SecretStr(SECRETS["gateway_secret"])) as gateway,
        open_channel(address, SecretStr(SECRETS["operator_secret"])) as operator,
        open_channel(address, SecretStr(SECRETS["room_secret"])) as neighbour,
    ):
        yield replace(
            room,
            address=address,
            engine=engine,
            razorpay=razorpay,
            catalog=catalog_pb2_grpc.CatalogServiceStub(gateway),
            product=subscriptions_pb2_grpc.SubscriptionsServiceStub(gateway),
            admin=subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub(operator),
            events=payment_events_pb2_grpc.PaymentEventsServiceStub(neighbour),
            maintenance=subscriptions_maintenance_pb2_grpc.SubscriptionsMaintenanceServiceStub(neighbour),
            webhooks=PaymentEvents(neighbour),
            admin_url=at_first.admin_url,
        )


async def test_an_upgrade_takes_back_what_the_first_release_granted(
    room: Room, first_release: Database, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("starter")
    await life.pass_time(days=15, tick=False)

    async with upgraded(room, tenant, first_release) as today:
        after = Life(today, tenant, travel)
        await after.assert_stands("starter")
        begun = await after.change("pro")
        assert begun.quote.credits_revoked > 1000
        await after.act(begun.checkout.subscription_id, "pay", method="card")

        await after.assert_stands("pro")
        assert [each["credits"] for each in after.revocations()] == [begun.quote.credits_revoked]
        assert [each["amount_paise"] for each in after.refunds()] == [begun.quote.refund_paise]
        await after.pass_time(days=31)
        await after.assert_stands("pro")
        assert after.findings() == []


async def test_a_dripping_year_of_the_first_release_gets_its_months(
    room: Room, first_release: Database, tenant: str, travel: Travel
) -> None:
    async with selling(room, with_plan("pro", credit_cadence="monthly")):
        life = Life(room, tenant, travel)
        await life.subscribe("pro", "yearly")

        async with upgraded(room, tenant, first_release) as today:
            await today.maintenance.GrantDueCredits(
                maintenance_pb.GrantDueCreditsRequest(idempotency_key="job:due:first")
            )
            granted = today.rows("SELECT kind, credits FROM credit_grants WHERE tenant_id = %s", tenant)
    assert granted == [{"kind": "plan.month", "credits": 15_000}]
