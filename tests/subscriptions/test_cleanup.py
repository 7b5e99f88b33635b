"""The room forgets forged confirmations and idle limits of its own, once they are old, and counts them."""

from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from tests.subscriptions.conftest import Room


async def test_forged_confirmations_and_idle_limits_are_forgotten(room: Room, tenant: str) -> None:
    room.change(
        "INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id, created_at)"
        " SELECT tenant || room || days, room, '/payment/verify', tenant, now() - make_interval(days => days)"
        " FROM unnest(ARRAY['webhooks', 'subscriptions']) AS room, unnest(ARRAY[10, 89, 91, 400]) AS days,"
        " (SELECT %s::text AS tenant) AS given",
        tenant,
    )
    room.change(
        "INSERT INTO rate_limit_buckets (room, key, tat)"
        " SELECT room, %s || hours, now() - make_interval(hours => hours)"
        " FROM unnest(ARRAY['webhooks', 'subscriptions']) AS room, unnest(ARRAY[-1, 23, 25, 900]) AS hours",
        tenant,
    )

    dry = await room.maintenance.Cleanup(pb.CleanupRequest(idempotency_key="job:cleanup:dry", dry_run=True))
    real = await room.maintenance.Cleanup(pb.CleanupRequest(idempotency_key="job:cleanup:real"))

    for answer in (dry, real):
        assert answer.signature_failures_deleted == 2
        assert answer.rate_limit_buckets_deleted >= 2
        assert answer.deleted >= 4
    left = room.rows(
        "SELECT room, count(*) AS n FROM billing_signature_failures WHERE tenant_id = %s GROUP BY room ORDER BY room",
        tenant,
    )
    assert [(row["room"], row["n"]) for row in left] == [("subscriptions", 2), ("webhooks", 4)]
    left = room.rows(
        "SELECT room, count(*) AS n FROM rate_limit_buckets WHERE key LIKE %s GROUP BY room ORDER BY room",
        f"{tenant}%",
    )
    assert [(row["room"], row["n"]) for row in left] == [("subscriptions", 2), ("webhooks", 4)]
