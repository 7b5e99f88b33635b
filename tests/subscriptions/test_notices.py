"""Notices: signed, delivered until they arrive, to nobody twice at once, and listed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from billing.subscriptions.v1 import (
    subscriptions_admin_pb2,
    subscriptions_maintenance_pb2,
    subscriptions_maintenance_pb2_grpc,
)
from pydantic import SecretStr, ValidationError

from services.subscriptions.actions.notices import AT_ONCE, deliver_notices
from services.subscriptions.clients import notices as client
from services.subscriptions.clients.notices import NoticeSink
from services.subscriptions.config import SubscriptionsSettings
from services.subscriptions.rules.notices import (
    ATTEMPTS_EAGER,
    BACKOFF_BASE_SECONDS,
    BACKOFF_MAX_SECONDS,
    LEASE,
    wait_after,
)
from services.subscriptions.rules.policy import LADDER
from services.subscriptions.store import notices as store
from shared.database import transaction
from shared.errors import BillingError, InvalidArgument
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import Received, free_port, listening
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_process import ROOT, environment

SECRET = "notification-secret-of-the-tests"


@pytest.fixture(autouse=True)
def _nothing_owed(room: Room) -> None:
    """What other tests left owed would be sent as well."""
    room.change("UPDATE billing_notifications SET sent_at = now() WHERE sent_at IS NULL")


async def owe(
    room: Room, tenant: str, *kinds: str, skipped: bool = False, at: datetime | None = None
) -> None:
    async with transaction(room.engine) as db:
        for kind in kinds:
            assert await store.insert_notice(
                db,
                tenant_id=tenant,
                kind=kind,
                cycle_ref="sub_1:1",
                payload={"planCode": "pro", "overLimit": [{"limit": "blog.posts"}]},
                now=at or room.clock(),
                skipped=skipped,
            )


def rows(room: Room, tenant: str) -> list[dict[str, Any]]:
    return room.rows("SELECT * FROM billing_notifications WHERE tenant_id = %s ORDER BY id", tenant)


async def test_a_notice_is_posted_once_and_signed(room: Room, tenant: str) -> None:
    await owe(room, tenant, "past_due_day_1")
    with listening() as endpoint:
        sink = NoticeSink(endpoint.url, SECRET)

        sent = [await deliver_notices(room.engine, sink, now=room.clock()) for _ in range(2)]

    assert sent == [1, 0]
    [received] = endpoint.received
    [row] = rows(room, tenant)
    signature = hmac.new(SECRET.encode(), received.body, hashlib.sha256).hexdigest()
    assert received.headers["x-billing-signature"] == f"sha256={signature}"
    assert received.headers["x-billing-notification-id"] == row["id"]
    assert received.headers["content-type"] == "application/json"
    assert json.loads(received.body) == {
        "id": row["id"],
        "kind": "past_due_day_1",
        "tenant_id": tenant,
        "cycle_ref": "sub_1:1",
        "created_at": row["created_at"].isoformat(),
        "payload": {"planCode": "pro", "overLimit": [{"limit": "blog.posts"}]},
    }
    assert row["sent_at"] is not None


async def test_without_a_secret_nothing_is_signed(room: Room, tenant: str) -> None:
    await owe(room, tenant, "past_due_day_1")
    with listening() as endpoint:
        assert await deliver_notices(room.engine, NoticeSink(endpoint.url), now=room.clock()) == 1

    assert "x-billing-signature" not in endpoint.received[0].headers


@pytest.mark.parametrize("status", [302, 400, 500])
async def test_only_a_2xx_counts_and_the_next_attempt_waits(room: Room, tenant: str, status: int) -> None:
    await owe(room, tenant, "past_due_day_1")
    now = room.clock()
    with listening(lambda _: status if len(endpoint.received) == 1 else 204) as endpoint:
        sink = NoticeSink(endpoint.url)
        assert await deliver_notices(room.engine, sink, now=now) == 0
        [row] = rows(room, tenant)
        assert (row["sent_at"], row["attempts"]) == (None, 1)
        assert now < row["next_attempt_at"] <= now + timedelta(seconds=BACKOFF_BASE_SECONDS)

        assert await deliver_notices(room.engine, sink, now=now) == 0
        assert await deliver_notices(room.engine, sink, now=row["next_attempt_at"]) == 1

    [row] = rows(room, tenant)
    assert (row["sent_at"] is not None, row["attempts"], len(endpoint.received)) == (True, 2, 2)


async def test_without_a_sink_notices_stay_owed(room: Room, tenant: str) -> None:
    await owe(room, tenant, "past_due_day_1")

    assert await deliver_notices(room.engine, None, now=room.clock()) == 0

    [row] = rows(room, tenant)
    assert (row["sent_at"], row["attempts"]) == (None, 0)


async def test_a_skipped_notice_is_never_sent(room: Room, tenant: str) -> None:
    await owe(room, tenant, "past_due_day_1", skipped=True)
    with listening() as endpoint:
        later = room.clock() + timedelta(days=30)
        assert await deliver_notices(room.engine, NoticeSink(endpoint.url), now=later) == 0

    assert endpoint.received == []


async def test_a_dead_receiver_costs_one_round(room: Room, tenant: str) -> None:
    await owe(room, tenant, *(f"kind_{number}" for number in range(3 * AT_ONCE)))

    assert (
        await deliver_notices(room.engine, NoticeSink(f"http://127.0.0.1:{free_port()}"), now=room.clock())
        == 0
    )

    attempts = [row["attempts"] for row in rows(room, tenant)]
    assert sorted(attempts) == [0] * 2 * AT_ONCE + [1] * AT_ONCE
    assert all(row["sent_at"] is None for row in rows(room, tenant))


async def test_a_slow_receiver_is_not_waited_for(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.2)
    await owe(room, tenant, *(f"kind_{number}" for number in range(2 * AT_ONCE)))

    def slowly(_: Received) -> int:
        time.sleep(1)
        return 200

    with listening(slowly) as endpoint:
        began = time.monotonic()
        assert await deliver_notices(room.engine, NoticeSink(endpoint.url), now=room.clock()) == 0
        assert time.monotonic() - began < 1

    assert sorted(row["attempts"] for row in rows(room, tenant)) == [0] * AT_ONCE + [1] * AT_ONCE


async def test_one_that_is_refused_does_not_keep_the_others_back(room: Room, tenant: str) -> None:
    await owe(room, tenant, *(f"kind_{number:02}" for number in range(2 * AT_ONCE)))

    def picky(received: Received) -> int:
        return 422 if json.loads(received.body)["kind"] == "kind_00" else 200

    with listening(picky) as endpoint:
        sent = await deliver_notices(room.engine, NoticeSink(endpoint.url), now=room.clock())

    assert sent == 2 * AT_ONCE - 1
    assert [row["kind"] for row in rows(room, tenant) if row["sent_at"] is None] == ["kind_00"]


async def test_processes_at_the_same_time_send_each_notice_once(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The receiver of the tests lets five connections wait and resets the others.
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 64)
    await owe(room, tenant, *(f"kind_{number}" for number in range(30)))
    with listening() as endpoint:
        sink, now = NoticeSink(endpoint.url), room.clock()
        sent = await asyncio.gather(*(deliver_notices(room.engine, sink, now=now) for _ in range(3)))

    assert sum(sent) == 30
    ids = [received.headers["x-billing-notification-id"] for received in endpoint.received]
    assert sorted(ids) == sorted(row["id"] for row in rows(room, tenant))


async def test_what_a_killed_process_was_sending_is_sent_again_after_its_lease(
    room: Room, tenant: str
) -> None:
    await owe(room, tenant, "past_due_day_1")
    now = room.clock()
    async with transaction(room.engine) as db:
        [claimed] = await store.claim_owed(db, now, limit=AT_ONCE)
    with listening() as endpoint:
        sink = NoticeSink(endpoint.url)
        assert await deliver_notices(room.engine, sink, now=now) == 0
        assert await deliver_notices(room.engine, sink, now=now + LEASE) == 1
    async with transaction(room.engine) as db:
        await store.postpone(db, claimed, now + timedelta(days=9))

    [row] = rows(room, tenant)
    assert row["sent_at"] is not None
    assert row["next_attempt_at"] < now + timedelta(days=9)


async def test_nothing_is_posted_inside_a_transaction(room: Room, tenant: str) -> None:
    with listening() as endpoint:
        async with transaction(room.engine):
            with pytest.raises(AssertionError, match="notice sink inside a transaction"):
                await NoticeSink(endpoint.url).post("ntf_1", {})

    assert endpoint.received == []


def test_no_notice_is_given_up() -> None:
    waits = [wait_after(attempts) for attempts in range(1, 40)]

    assert all(wait <= timedelta(seconds=BACKOFF_MAX_SECONDS) for wait in waits[: ATTEMPTS_EAGER - 1])
    assert set(waits[ATTEMPTS_EAGER - 1 :]) == {timedelta(days=1)}


class Process:
    """The room as a process of its own, told where notices go."""

    def __init__(self, database: Database, url: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        told = environment(
            database,
            SUBSCRIPTIONS_LISTEN=self.address,
            BILLING_NOTIFICATION_WEBHOOK_URL=url,
            BILLING_NOTIFICATION_SECRET=SECRET,
        )
        self._process = subprocess.Popen([sys.executable, "-m", "services.subscriptions"], cwd=ROOT, env=told)

    async def jobs(
        self,
    ) -> tuple[
        subscriptions_maintenance_pb2.EscalatePastDueResponse,
        subscriptions_maintenance_pb2.CheckHealthResponse,
    ]:
        """One run of each job, as soon as the room serves."""
        channel = open_channel(self.address, SecretStr(SECRETS["room_secret"]))
        stub = subscriptions_maintenance_pb2_grpc.SubscriptionsMaintenanceServiceStub(channel)
        escalate = subscriptions_maintenance_pb2.EscalatePastDueRequest(idempotency_key="job:escalation:1")
        check = subscriptions_maintenance_pb2.CheckHealthRequest(idempotency_key="job:billing_health:1")
        try:
            for _ in range(200):
                try:
                    return await stub.EscalatePastDue(escalate), await stub.CheckHealth(check)
                except BillingError:
                    await asyncio.sleep(0.1)
            raise AssertionError("the room did not serve in time")
        finally:
            await channel.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def room_as_process(database: Database) -> Iterator[list[Process]]:
    """A list to append processes to; they end with the test."""
    begun: list[Process] = []
    yield begun
    for process in begun:
        process.close()


async def test_the_job_delivers_to_the_url_of_the_settings_and_names_what_does_not_arrive(
    room: Room, tenant: str, database: Database, room_as_process: list[Process]
) -> None:
    await owe(room, tenant, "past_due_day_1", "stubborn")
    room.change(
        "UPDATE billing_notifications SET attempts = %s WHERE tenant_id = %s AND kind = 'stubborn'",
        ATTEMPTS_EAGER,
        tenant,
    )

    def picky(received: Received) -> int:
        return 500 if json.loads(received.body)["kind"] == "stubborn" else 200

    with listening(picky) as endpoint:
        process = Process(database, endpoint.url)
        room_as_process.append(process)
        escalated, health = await process.jobs()

    assert escalated.notices_sent == 1
    assert [each for each in escalated.alerts if not each.is_event] == []
    [alert] = [each for each in health.alerts if "notices" in each.key]
    assert (alert.key, dict(alert.evidence)) == ("subscriptions.notices_undelivered", {"count": "1"})
    assert all("x-billing-signature" in received.headers for received in endpoint.received)
    delivered = {row["kind"]: row["sent_at"] is not None for row in rows(room, tenant)}
    assert delivered == {"past_due_day_1": True, "stubborn": False}


def settings(**of: Any) -> SubscriptionsSettings:
    secrets = {name: SecretStr(value) for name, value in SECRETS.items()}
    return SubscriptionsSettings(
        **{"subscriptions_database_url": SecretStr("postgresql://"), **secrets, **of}
    )


def test_the_ladder_is_a_setting() -> None:
    assert settings().policy.ladder == LADDER

    ladder = settings(billing_past_due_days="2,5,9,21").policy.ladder

    assert [(step.day, step.kind) for step in ladder] == [
        (2, "past_due_day_1"),
        (5, "past_due_day_3"),
        (9, "past_due_day_7"),
        (21, "auto_downgraded"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"billing_past_due_days": "1,3,7"},
        {"billing_past_due_days": "3,1,7,14"},
        {"billing_past_due_days": "1,3,3,14"},
        {"billing_notification_webhook_url": "example.com/notices"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        settings(**wrong)


async def listed(room: Room, **of: Any) -> subscriptions_admin_pb2.ListNotificationsResponse:
    return await room.admin.ListNotifications(subscriptions_admin_pb2.ListNotificationsRequest(**of))


async def test_notices_are_listed_newest_first_in_pages_that_stay(room: Room, tenant: str) -> None:
    began = room.clock()
    for number in range(7):
        # Two of each moment: then the id decides.
        await owe(room, tenant, f"kind_{number}", at=began + timedelta(seconds=number // 2))

    first = await listed(room, tenant_id=tenant, page_size=3)
    await owe(room, tenant, "newer", at=began + timedelta(minutes=1))
    second = await listed(room, tenant_id=tenant, page_size=3, page_token=first.next_page_token)
    third = await listed(room, tenant_id=tenant, page_size=3, page_token=second.next_page_token)

    found = [*first.notifications, *second.notifications, *third.notifications]
    moments = [notice.created_at.ToDatetime() for notice in found]
    assert moments == sorted(moments, reverse=True)
    assert {notice.kind for notice in found} == {f"kind_{number}" for number in range(7)}
    assert (len(found), third.next_page_token) == (7, "")
    assert [notice.kind for notice in (await listed(room, tenant_id=tenant, kind="newer")).notifications] == [
        "newer"
    ]


async def test_a_listed_notice_says_how_it_fares(room: Room, tenant: str) -> None:
    await owe(room, tenant, "skipped", skipped=True)
    await owe(room, tenant, "sent")
    with listening() as endpoint:
        assert await deliver_notices(room.engine, NoticeSink(endpoint.url), now=room.clock()) == 1
    await owe(room, tenant, "owed")

    found = {notice.kind: notice for notice in (await listed(room, tenant_id=tenant)).notifications}

    states = {
        kind: [name for name in ("sent_at", "skipped_at", "next_attempt_at") if notice.HasField(name)]
        for kind, notice in found.items()
    }
    assert states == {"owed": ["next_attempt_at"], "sent": ["sent_at"], "skipped": ["skipped_at"]}
    assert {kind: notice.attempts for kind, notice in found.items()} == {"owed": 0, "sent": 1, "skipped": 0}
    assert json.loads(found["owed"].payload_json)["planCode"] == "pro"


@pytest.mark.parametrize("token", ["nonsense", "AAAA", "MjAyNi0xMS0yMSBudGZfMQ"])
async def test_a_page_token_that_is_none_of_ours_is_refused(room: Room, token: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await listed(room, page_token=token)

    assert refused.value.reason == "PAGE_TOKEN_INVALID"
