"""What operators and the scheduler can do, through the real gate."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billing.maintenance.v1 import alert_pb2
from billing.webhooks.v1 import webhooks_admin_pb2 as pb
from billing.webhooks.v1 import webhooks_admin_pb2_grpc as admin_grpc
from billing.webhooks.v1 import webhooks_maintenance_pb2 as maintenance_pb
from billing.webhooks.v1 import webhooks_maintenance_pb2_grpc as maintenance_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from shared.rpc.client import open_channel
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged, eventually, sample

WHO = {"actor": "asha@example.com", "reason": "ticket 8841"}
AUDIT = "SELECT * FROM billing_audit_log WHERE actor_id = 'asha@example.com' AND created_at >= %s ORDER BY created_at"


def stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


@pytest.fixture
def began_at() -> datetime:
    return datetime.now(UTC)


async def test_events_are_listed_newest_first_by_page(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    for number in range(5):
        await room.post(charged(tenant, payment=f"pay_{number}"), x_razorpay_event_id=f"event{number}")
    await room.post(charged("somebody_else"))

    seen: list[str] = []
    token = ""
    for _ in range(3):
        page = await room.admin.ListEvents(
            pb.ListEventsRequest(tenant_id=tenant, page_size=2, page_token=token)
        )
        seen += [event.event_id for event in page.events]
        token = page.next_page_token

    assert seen == ["event4", "event3", "event2", "event1", "event0"]
    assert token == ""


async def test_events_are_filtered(room: Running, tenant: str) -> None:
    await room.post(charged(tenant))
    await room.post(sample("_invalid/truncated.bin"))
    await room.settled(2)
    now = datetime.now(UTC)

    async def count(**wanted: Any) -> int:
        return len((await room.admin.ListEvents(pb.ListEventsRequest(**wanted))).events)

    assert await count(status=pb.EVENT_STATUS_DEAD) == 1
    assert await count(status=pb.EVENT_STATUS_PROCESSED) == 1
    assert await count(status=pb.EVENT_STATUS_PENDING) == 0
    assert await count(event_type="subscription.charged") == 1
    assert await count(received_from=stamp(now - timedelta(minutes=1))) == 2
    assert await count(received_until=stamp(now - timedelta(minutes=1))) == 0


async def test_a_token_of_another_list_is_refused(room: Running) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await room.admin.ListEvents(pb.ListEventsRequest(page_token="bm9uc2Vuc2U="))

    assert refusal.value.reason == "PAGE_TOKEN_INVALID"


async def test_an_event_is_shown_without_what_is_personal(room: Running) -> None:
    await room.post(sample("subscription.charged.json"))
    [row] = await room.settled(1)

    shown = await room.admin.GetEvent(pb.GetEventRequest(id=row["id"]))

    body = json.loads(shown.redacted_body)
    payment = body["payload"]["payment"]["entity"]
    assert payment["amount"] == 235882
    assert payment["id"] == "pay_jWoKp0BC8gbNPg"
    assert body["payload"]["subscription"]["entity"]["notes"]["tenant_id"] == "tn_01JA7ZK3Q8"
    assert "asha" not in shown.redacted_body
    assert "919000000001" not in shown.redacted_body
    assert shown.event.status == pb.EVENT_STATUS_PROCESSED
    assert shown.body_bytes == 1790


async def test_an_unreadable_event_is_shown_with_its_reason(room: Running) -> None:
    await room.post(sample("_invalid/invalid_utf8.bin"))
    [row] = await room.settled(1)

    shown = await room.admin.GetEvent(pb.GetEventRequest(id=row["id"]))

    assert (shown.redacted_body, shown.body_note) == ("", "body_not_utf8")


async def test_an_unknown_event_is_not_found(room: Running) -> None:
    with pytest.raises(NotFound) as refusal:
        await room.admin.GetEvent(pb.GetEventRequest(id="evt_none"))

    assert (refusal.value.reason, refusal.value.metadata) == ("EVENT_NOT_FOUND", {"event": "evt_none"})


@pytest.mark.parametrize("how", ["id", "tenant", "range"])
async def test_a_replay_is_delivered_again_and_changes_nothing(
    room: Running, tenant: str, how: str, began_at: datetime
) -> None:
    await room.post(charged(tenant))
    [row] = await room.settled(1)
    selection: dict[str, Any] = {
        "id": {"id": row["id"]},
        "tenant": {"tenant_id": tenant},
        "range": {
            "range": pb.EventRange(
                received_from=stamp(row["received_at"]),
                received_until=stamp(row["received_at"] + timedelta(seconds=1)),
            )
        },
    }[how]

    request = pb.ReplayEventsRequest(**selection, **WHO, idempotency_key=f"replay-{tenant}")
    first = await room.admin.ReplayEvents(request)
    await eventually(lambda: _arrived(room, 2))
    repeated = await room.admin.ReplayEvents(request)
    rows = await room.settled(1)

    assert (first.replayed_count, repeated.replayed_count) == (1, 1)
    assert [row["outcome"] for row in rows] == ["duplicate"]
    assert (len(room.subscriptions.requests), len(room.subscriptions.effects)) == (2, 1)
    [line] = await room.rows(AUDIT, began_at)
    assert (line["room"], line["action"], line["actor_type"]) == ("webhooks", "webhook.replay", "operator")
    assert line["metadata"]["reason"] == "ticket 8841"
    assert line["metadata"]["before"]["events"] == {row["id"]: "applied recorded"}
    assert line["metadata"]["after"] == {"status": "pending", "events": 1}
    assert (line["tenant_id"], bool(line["request_id"])) == (tenant, True)


async def _arrived(room: Running, count: int) -> bool:
    rows = await room.rows("SELECT * FROM webhook_events WHERE processed")
    return len(room.subscriptions.requests) >= count and bool(rows)


async def test_a_key_belongs_to_one_wish(room: Running, tenant: str) -> None:
    request = pb.ReplayEventsRequest(tenant_id=tenant, **WHO, idempotency_key=f"key-{tenant}")
    await room.admin.ReplayEvents(request)
    request.tenant_id = "another"

    with pytest.raises(FailedPrecondition) as refusal:
        await room.admin.ReplayEvents(request)

    assert refusal.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert refusal.value.metadata["field"] == "selection"


async def test_replaying_what_is_not_there_changes_nothing(room: Running, began_at: datetime) -> None:
    with pytest.raises(NotFound):
        await room.admin.ReplayEvents(
            pb.ReplayEventsRequest(id="evt_none", **WHO, idempotency_key="replay-none")
        )

    assert await room.rows(AUDIT, began_at) == []
    assert await room.rows("SELECT * FROM webhook_admin_requests") == []


@pytest.mark.parametrize("missing", ["actor", "reason", "idempotency_key", "selection"])
async def test_a_wish_is_complete(room: Running, missing: str) -> None:
    wish = {"id": "evt_x", **WHO, "idempotency_key": "k"}
    wish.pop("id" if missing == "selection" else missing)

    with pytest.raises(InvalidArgument) as refusal:
        await room.admin.ReplayEvents(pb.ReplayEventsRequest(**wish))

    assert missing in str(refusal.value.violations)


async def test_dead_letters_are_requeued_and_succeed(start: Start, tenant: str, began_at: datetime) -> None:
    room = await start(webhooks_delivery_attempts=1)

    async def fail(_request: Any) -> None:
        raise Unavailable("later")

    room.subscriptions.before = fail
    await room.post(charged(tenant))
    await room.settled(1)
    room.subscriptions.before = None

    listed = await room.admin.ListDeadLetters(pb.ListDeadLettersRequest(tenant_id=tenant))
    [letter] = listed.dead_letters
    requeued = await room.admin.RequeueDeadLetters(
        pb.RequeueDeadLettersRequest(
            dead_letters=pb.DeadLetterIds(ids=[letter.id]), **WHO, idempotency_key=f"requeue-{tenant}"
        )
    )
    [row] = await room.settled(1)

    assert (letter.reason, letter.last_error) == ("attempts_exhausted", "UNAVAILABLE")
    assert letter.event.status == pb.EVENT_STATUS_DEAD
    assert requeued.requeued_count == 1
    assert row["outcome"] == "applied"
    assert (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters == []
    [line] = await room.rows(AUDIT, began_at)
    assert line["action"] == "webhook.requeue"
    assert line["metadata"]["before"]["dead_letters"][0]["reason"] == "attempts_exhausted"
    assert line["metadata"]["after"] == {"status": "pending", "dead_letters": 0, "events": 1}
    assert (line["resource_id"], line["tenant_id"]) == (letter.id, tenant)


async def test_discarded_letters_stay_dead(room: Running, began_at: datetime) -> None:
    for name in ("truncated.bin", "array.json"):
        await room.post(sample(f"_invalid/{name}"))
    await room.settled(2)

    discarded = await room.admin.DiscardDeadLetters(
        pb.DiscardDeadLettersRequest(set_aside_for="body_not_json", **WHO, idempotency_key="discard-1")
    )

    assert discarded.discarded_count == 1
    left = (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert [letter.reason for letter in left] == ["body_not_object"]
    assert {row["outcome"] for row in await room.rows()} == {"dead"}
    assert [line["action"] for line in await room.rows(AUDIT, began_at)] == ["webhook.discard"]


async def test_one_unknown_letter_spares_the_others(room: Running) -> None:
    await room.post(sample("_invalid/truncated.bin"))
    await room.settled(1)
    [letter] = (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters

    with pytest.raises(NotFound) as refusal:
        await room.admin.DiscardDeadLetters(
            pb.DiscardDeadLettersRequest(
                dead_letters=pb.DeadLetterIds(ids=[letter.id, "dead_none"]),
                **WHO,
                idempotency_key="discard-2",
            )
        )

    assert refusal.value.metadata == {"dead_letter": "dead_none"}
    assert len((await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters) == 1


async def test_replaying_a_dead_event_takes_it_off_the_queue(room: Running) -> None:
    await room.post(sample("_invalid/truncated.bin"))
    [row] = await room.settled(1)
    [first] = (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters

    await room.admin.ReplayEvents(pb.ReplayEventsRequest(id=row["id"], **WHO, idempotency_key="replay-dead"))
    await room.settled(1)

    [second] = (await room.admin.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert (second.id != first.id, second.event.id) == (True, row["id"])


async def test_signature_failures_are_listed(room: Running) -> None:
    await room.post(b"{}", secret="wrong-secret", x_razorpay_event_id="first")

    async def listed() -> Any:
        return (
            await room.admin.ListSignatureFailures(pb.ListSignatureFailuresRequest(endpoint="webhook"))
        ).signature_failures

    [failure] = await eventually(listed)
    assert (failure.endpoint, failure.payload_id, failure.remote_ip) == ("webhook", "first", "127.0.0.1")


async def test_each_door_wants_its_own_key(room: Running) -> None:
    async with open_channel(room.grpc_address, room.settings.gateway_secret) as service:
        with pytest.raises(PermissionDenied):
            await admin_grpc.WebhooksAdminServiceStub(service).ListEvents(pb.ListEventsRequest())
        with pytest.raises(PermissionDenied):
            await maintenance_grpc.WebhooksMaintenanceServiceStub(service).CheckHealth(
                maintenance_pb.CheckHealthRequest(idempotency_key="k")
            )


async def test_deliver_pending_drains_what_is_due(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    for number in range(12):
        await room.post(charged(tenant, payment=f"pay_{number}"))
    await room.post(sample("_invalid/truncated.bin"))

    rehearsed = await room.maintenance.DeliverPending(
        maintenance_pb.DeliverPendingRequest(idempotency_key="job:x", dry_run=True)
    )
    done = await room.maintenance.DeliverPending(
        maintenance_pb.DeliverPendingRequest(idempotency_key="job:x")
    )

    assert (rehearsed.pending_count, rehearsed.delivered_count) == (13, 0)
    assert (done.delivered_count, done.dead_count, done.failed_count, done.pending_count) == (12, 1, 0, 0)
    assert [request.event.payment.id for request in room.subscriptions.requests] == [
        f"pay_{number}" for number in range(12)
    ]


async def test_deliver_pending_ends_before_its_deadline(start: Start, tenant: str) -> None:
    room = await start(deliver=False)

    async def hang(_request: Any) -> None:
        await asyncio.sleep(30)

    room.subscriptions.before = hang
    await room.post(charged(tenant))

    answer = await room.maintenance.DeliverPending(
        maintenance_pb.DeliverPendingRequest(idempotency_key="job:x"), timeout=3
    )

    assert (answer.failed_count, answer.pending_count) == (1, 1)
    [row] = await room.rows()
    assert (row["locked_until"], row["last_error"]) == (None, "DEADLINE_EXCEEDED")


async def test_many_signature_failures_are_one_critical_alert(start: Start) -> None:
    room = await start(deliver=False)

    async def alerts(failures: int) -> list[alert_pb2.Alert]:
        async def recorded() -> bool:
            return len(await room.rows("SELECT id FROM billing_signature_failures")) >= failures

        await eventually(recorded)
        answer = await room.maintenance.CheckHealth(
            maintenance_pb.CheckHealthRequest(idempotency_key="job:x")
        )
        return [alert for alert in answer.alerts if "signature" in alert.key]

    for _ in range(5):
        await room.post(b"{}", secret="wrong-secret")
    assert await alerts(5) == []
    for _ in range(10):
        await room.post(b"{}", secret="wrong-secret")
    [alert] = await alerts(15)

    assert alert.severity == alert_pb2.ALERT_SEVERITY_CRITICAL
    assert alert.key == "webhooks.signature_spike:endpoint:webhook"
    assert alert.evidence["failures"] == "15"


async def test_cleanup_keeps_the_hash_longer_than_the_body(start: Start, tenant: str) -> None:
    room = await start()
    for name in ("recent", "old", "ancient"):
        await room.post(charged(f"{tenant}_{name}"))
    await room.post(sample("_invalid/truncated.bin"))
    await room.settled(4)
    for days, name in ((100, "old"), (800, "ancient")):
        await room.db.execute(
            "UPDATE webhook_events SET received_at = now() - make_interval(days => %s),"
            " processed_at = now() - make_interval(days => %s) WHERE tenant_id = %s",
            (days, days, f"{tenant}_{name}"),
        )
    await room.db.execute(
        "UPDATE webhook_events SET processed_at = now() - interval '900 days' WHERE outcome = 'dead'"
    )
    request = maintenance_pb.CleanupRequest(idempotency_key="job:cleanup", dry_run=True)

    rehearsed = await room.maintenance.Cleanup(request)
    request.dry_run = False
    cleaned = await room.maintenance.Cleanup(request)

    assert (rehearsed.bodies_removed_count, cleaned.bodies_removed_count) == (2, 2)
    assert (cleaned.events_removed_count, cleaned.more_remains) == (1, False)
    left = {row["tenant_id"]: len(row["body"]) for row in await room.rows() if row["tenant_id"]}
    assert left.keys() == {f"{tenant}_recent", f"{tenant}_old"}
    assert left[f"{tenant}_old"] == 0 < left[f"{tenant}_recent"]
    assert (await room.post(charged(f"{tenant}_old"))).json() == {"status": "duplicate"}
    [old] = await room.rows("SELECT id FROM webhook_events WHERE tenant_id = %s", f"{tenant}_old")
    with pytest.raises(FailedPrecondition) as refusal:
        await room.admin.ReplayEvents(pb.ReplayEventsRequest(id=old["id"], **WHO, idempotency_key="too-old"))
    assert refusal.value.reason == "EVENT_BODY_REMOVED"
