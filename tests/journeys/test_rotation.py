"""The webhook secret changes while deliveries come; the words of the runbook (docs/runbooks.md, Secret rotation) are run."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest
from billing.maintenance.v1 import alert_pb2
from billing.webhooks.v1 import webhooks_maintenance_pb2 as maintenance
from billing.webhooks.v1 import webhooks_maintenance_pb2_grpc as maintenance_grpc
from pydantic import SecretStr

from billctl.settings import ROOMS
from shared.rpc.client import open_channel
from tests.journeys.runbook_page import Block, is_what_the_page_says
from tests.sandbox.running import KEY_ID, KEY_SECRET, Received, Sandbox, listening
from tests.suite.running import HOUSE
from tests.webhooks.harness import (
    OLD_SECRET,
    SECRET,
    Subscriptions,
    eventually,
    neighbour,
    room_settings,
    signature,
)
from tests.webhooks.processes import Process, process

OLD = {"RAZORPAY_WEBHOOK_SECRET": OLD_SECRET, "RAZORPAY_WEBHOOK_SECRET_PREVIOUS": ""}
BOTH = {"RAZORPAY_WEBHOOK_SECRET": SECRET, "RAZORPAY_WEBHOOK_SECRET_PREVIOUS": OLD_SECRET}
NEW = {"RAZORPAY_WEBHOOK_SECRET": SECRET, "RAZORPAY_WEBHOOK_SECRET_PREVIOUS": ""}
# Razorpay's day of retries in half an hour; the first six of them within seven seconds.
QUICKLY = "0.02"


def runbook(language: str) -> list[str]:
    """What the section tells to type."""
    section = (
        (HOUSE / "docs" / "runbooks.md").read_text().split("\n## Secret rotation\n")[1].split("\n## ")[0]
    )
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", section, flags=re.MULTILINE | re.DOTALL)


@dataclass
class Provider:
    """The sandbox, whose customers buy until they are told to stop."""

    http: httpx.AsyncClient
    url: str
    endpoint: str
    orders: int = 0
    _buying: asyncio.Task[None] | None = field(default=None, repr=False)

    async def ask(self, path: str, **body: Any) -> Any:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def buy(self) -> None:
        """Three events of one payment, each sent twice, in any order."""
        self.orders += 1
        order = await self.ask("/v1/orders", amount=166000, currency="INR", receipt=f"cp_{self.orders}")
        manners = {"duplicates": 1, "shuffle": True, "seed": self.orders, "bodies": False}
        await self.ask(f"/_sandbox/orders/{order['id']}/pay", **manners)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Payments without a pause."""

        async def buying() -> None:
            while True:
                await self.buy()
                await asyncio.sleep(0.06)

        task = asyncio.create_task(buying())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def sign_with(self, secret: str) -> None:
        """The dashboard."""
        await self.ask("/_sandbox/webhook_endpoint", url=self.endpoint, secret=secret)

    async def deliveries(self) -> list[dict[str, Any]]:
        answer = await self.http.get("/_sandbox/deliveries")
        found: list[dict[str, Any]] = answer.json()
        return found

    async def drained(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("/_sandbox/drain", timeout=30, hurry=True)
        return found


@asynccontextmanager
async def provider(endpoint: str, secret: str, *, scale: str = QUICKLY) -> AsyncIterator[Provider]:
    """A sandbox process that signs with this secret."""
    sandbox = await asyncio.to_thread(
        lambda: Sandbox(
            RAZORPAY_WEBHOOK_SECRET=secret, SANDBOX_WEBHOOK_URL=endpoint, SANDBOX_RETRY_SCALE=scale
        )
    )
    try:
        async with httpx.AsyncClient(
            base_url=sandbox.url, auth=(KEY_ID, KEY_SECRET), timeout=40, trust_env=False
        ) as http:
            yield Provider(http, sandbox.url, endpoint)
    finally:
        await asyncio.to_thread(sandbox.close)


@pytest.fixture
async def db(database: Any) -> AsyncIterator[psycopg.AsyncConnection]:
    """The administrator's connection to an empty inbox."""
    async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as connection:
        await connection.execute("SET search_path = webhooks, ops")
        await connection.execute("TRUNCATE webhook_events, webhook_dead_letter_queue")
        await connection.execute("TRUNCATE billing_signature_failures, rate_limit_buckets")
        yield connection


@dataclass
class Scene:
    """An ingress that has not been started yet, and whom it tells."""

    database: Any
    secrets: Any
    db: psycopg.AsyncConnection
    subscriptions: Subscriptions
    address: str

    def ingress(self, **settings: str) -> Any:
        return process(self.database, self.secrets, self.address, **settings)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        cursor = await self.db.execute(query)
        return await cursor.fetchall()

    async def stored(self, signed_with: str) -> int:
        found = await self.rows(f"SELECT count(*) FROM webhook_events WHERE signed_with = '{signed_with}'")
        return int(found[0][0])

    async def refused(self) -> int:
        return int((await self.rows("SELECT count(*) FROM billing_signature_failures"))[0][0])

    async def alerts(self, ingress: Process) -> list[str]:
        """What the scheduler would tell of, as critical."""
        address, key = ingress.environment["WEBHOOKS_LISTEN"], SecretStr(self.secrets.room)
        async with open_channel(address, key) as channel:
            asked = maintenance.CheckHealthRequest(idempotency_key="job:webhook_health:now")
            health = await maintenance_grpc.WebhooksMaintenanceServiceStub(channel).CheckHealth(asked)
        critical = alert_pb2.ALERT_SEVERITY_CRITICAL
        return [alert.key for alert in health.alerts if alert.severity == critical]

    async def operator(self, query: str) -> list[dict[str, Any]]:
        """As a person would ask in psql."""
        async with await psycopg.AsyncConnection.connect(self.database.url("billing_operator")) as session:
            cursor = await session.execute(query)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def grows(self, signed_with: str, *, by: int = 5) -> None:
        before = await self.stored(signed_with)

        async def has_grown() -> bool:
            return await self.stored(signed_with) >= before + by

        await eventually(has_grown, seconds=20)

    async def everything_is_processed_once(self, emitted: list[dict[str, Any]]) -> None:
        """Each event that the provider ever told of has one row, and one effect."""
        hashes = sorted(hashlib.sha256(base64.b64decode(each["body_base64"])).hexdigest() for each in emitted)

        async def done() -> bool:
            [(waiting,)] = await self.rows("SELECT count(*) FROM webhook_events WHERE NOT processed")
            return int(waiting) == 0

        await eventually(done, seconds=20)
        rows = await self.rows("SELECT body_sha256, outcome FROM webhook_events ORDER BY body_sha256")
        assert len(emitted) > 20
        assert [row[0] for row in rows] == hashes
        assert {row[1] for row in rows} <= {"applied", "duplicate"}
        assert sorted(self.subscriptions.effects) == [
            f"event:razorpay:default:test:{each}" for each in hashes
        ]


@pytest.fixture
async def scene(database: Any, secrets: Any, db: psycopg.AsyncConnection) -> AsyncIterator[Scene]:
    """A neighbour that applies each fact once, as subscriptions does."""
    subscriptions = Subscriptions()
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    async with neighbour(settings, subscriptions) as address:
        yield Scene(database, secrets, db, subscriptions, address)


async def restart(ingress: Process, settings: dict[str, str]) -> None:
    """As every deployment does it: stop, new environment, start."""
    assert await ingress.end(signal.SIGTERM) == 0
    ingress.environment |= settings
    await ingress.start()


def statuses(deliveries: list[dict[str, Any]]) -> set[int | str]:
    return {attempt.get("status", "no answer") for delivery in deliveries for attempt in delivery["attempts"]}


async def test_ours_first_then_the_providers_loses_nothing(scene: Scene) -> None:
    async with (
        scene.ingress(**OLD) as ingress,
        provider(f"{ingress.url}/webhooks/razorpay", OLD_SECRET) as razorpay,
    ):
        await ingress.start()
        async with razorpay.busy():
            await scene.grows("current")
            await restart(ingress, BOTH)
            await scene.grows("previous")
            await razorpay.sign_with(SECRET)
            await scene.grows("current")
        assert (await razorpay.drained())["drained"]
        emitted = await razorpay.deliveries()
        await scene.everything_is_processed_once(emitted)
        assert statuses(emitted) <= {200, "no answer"}
        assert await scene.refused() == 0

        await the_runbook_shows_what_signs(scene, ingress)

        await restart(ingress, NEW)
        late = b'{"event": "order.paid", "late": true}'
        async with httpx.AsyncClient() as http:
            headers = {"X-Razorpay-Signature": signature(late, OLD_SECRET)}
            answer = await http.post(f"{ingress.url}/webhooks/razorpay", content=late, headers=headers)
            metrics = (await http.get(f"{ingress.url}/metrics")).text
        assert answer.status_code == 401
        assert 'signature_failures_total{endpoint="",provider="razorpay"} 1.0' in metrics
        assert await eventually(scene.refused) == 1


def printed(table: str) -> list[list[str]]:
    """psql's rows as the page prints them, moments and numbers aside."""
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if "|" in line]
    return [[re.sub(r"^[0-9]\S*$", "#", cell) for cell in row] for row in cells]


def answered(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The same of what the database answered."""

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "t" if value else "f"
        return "#" if isinstance(value, datetime | int) else str(value)

    return [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]


def by_the_command(scene: Scene, typed: str) -> str:
    """What billctl says of a house of which only the ingress and the database are up."""
    environment = {
        "PATH": os.environ["PATH"],
        "BILLING_DATA_DIR": "/nowhere",
        "READONLY_DATABASE_URL": scene.database.url("billing_readonly"),
        "OPERATOR_SECRET": scene.secrets.operator,
        **{f"{room.upper()}_ADDRESS": "127.0.0.1:1" for room in ROOMS},
    }
    told = subprocess.run(
        ["sh", "-euc", typed], cwd=HOUSE, env=environment, capture_output=True, text=True, check=False
    )
    assert told.returncode in {0, 3}, told.stderr
    return told.stdout


async def the_runbook_shows_what_signs(scene: Scene, ingress: Process) -> None:
    where, look = runbook("sh")
    watch, may_it_go = runbook("sql")
    standing, counters, stored, gone = runbook("text")
    told_where = await asyncio.to_thread(by_the_command, scene, where)
    assert is_what_the_page_says(Block("sh", where, standing), told_where), told_where
    told = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euc", look.replace("http://127.0.0.1:8080", ingress.url)],
        capture_output=True,
        text=True,
        check=True,
    )
    number = re.compile(r" ([0-9.]+)$", re.MULTILINE)
    lines = sorted(line.strip() for line in number.sub(" #", counters).strip().splitlines())
    assert sorted(number.sub(" #", told.stdout).strip().splitlines()) == lines
    assert min(map(float, number.findall(told.stdout))) >= 5

    rows = await scene.operator(watch)
    assert answered(rows) == printed(stored)
    assert sum(row["deliveries"] for row in rows) == sum(
        [await scene.stored("current"), await scene.stored("previous")]
    )
    [soon] = await scene.operator(may_it_go)
    await scene.db.execute(
        "UPDATE webhook_events SET received_at = received_at - interval '8 days 1 minute'"
        " WHERE signed_with = 'previous'"
    )
    later = await scene.operator(may_it_go)
    assert not soon["may_go"]
    assert answered(later) == printed(gone)


async def test_two_processes_restarted_in_turn_refuse_no_delivery(scene: Scene) -> None:
    serving: list[str] = []
    balancer = httpx.Client(timeout=10, trust_env=False)

    def forward(received: Received) -> int:
        kept = {
            name: value
            for name, value in received.headers.items()
            if name.startswith("x-") or name == "content-type"
        }
        url = serving[len(received.body) % len(serving)]
        return balancer.post(f"{url}/webhooks/razorpay", content=received.body, headers=kept).status_code

    with balancer, listening(forward) as front:
        async with (
            scene.ingress(**OLD) as one,
            scene.ingress(**OLD) as other,
            provider(front.url, OLD_SECRET) as razorpay,
        ):
            for each in (one, other):
                await each.start()
            serving += [one.url, other.url]
            async with razorpay.busy():
                await scene.grows("current")
                for each in (one, other):
                    # What a balancer does before a restart: nothing new for it, and what it has is answered.
                    serving.remove(each.url)
                    await asyncio.sleep(0.3)
                    await restart(each, BOTH)
                    serving.append(each.url)
                await scene.grows("previous")
                await razorpay.sign_with(SECRET)
                await scene.grows("current")
            assert (await razorpay.drained())["drained"]
            emitted = await razorpay.deliveries()
            await scene.everything_is_processed_once(emitted)

    assert statuses(emitted) == {200}
    assert await scene.refused() == 0


async def test_the_providers_first_is_a_spike_and_mended_within_a_day_nothing_is_lost(scene: Scene) -> None:
    async with (
        scene.ingress(**OLD) as ingress,
        provider(f"{ingress.url}/webhooks/razorpay", OLD_SECRET) as razorpay,
    ):
        await ingress.start()
        async with razorpay.busy():
            await scene.grows("current")
            await razorpay.sign_with(SECRET)

            async def spike() -> bool:
                return await scene.refused() >= 10

            await eventually(spike, seconds=20)
            assert await scene.alerts(ingress) == ["webhooks.signature_spike:endpoint:webhook"]
            agents = await scene.operator("SELECT DISTINCT user_agent FROM billing_signature_failures")
            assert agents == [{"user_agent": "Razorpay-Webhook/v1"}]
            await restart(ingress, BOTH)
            await scene.grows("current")
        assert await razorpay.drained() == {"drained": True, "pending": 0, "disabled": False}
        emitted = await razorpay.deliveries()
        await scene.everything_is_processed_once(emitted)

    assert statuses(emitted) >= {200, 401}
    once_refused = [
        each["status"] for each in emitted if 401 in {attempt.get("status") for attempt in each["attempts"]}
    ]
    assert set(once_refused) == {"delivered"}


async def test_mended_after_the_provider_gave_up_a_replay_brings_everything(scene: Scene) -> None:
    async with (
        scene.ingress(**OLD) as ingress,
        provider(f"{ingress.url}/webhooks/razorpay", OLD_SECRET, scale="0.00001") as razorpay,
    ):
        await ingress.start()
        for _ in range(4):
            await razorpay.buy()
        assert (await razorpay.drained())["drained"]
        await razorpay.sign_with(SECRET)
        for _ in range(4):
            await razorpay.buy()

        async def disabled() -> bool:
            return bool((await razorpay.drained())["disabled"])

        await eventually(disabled, seconds=20)
        await razorpay.buy()
        await restart(ingress, BOTH)
        await razorpay.ask("/_sandbox/replay")
        assert await razorpay.drained() == {"drained": True, "pending": 0, "disabled": False}
        await scene.everything_is_processed_once(await razorpay.deliveries())

    assert await scene.stored("previous") == 0
