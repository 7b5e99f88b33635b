"""The room forgets forged confirmations and idle limits of its own, once they are old, and counts them."""

from datetime import timedelta
from pathlib import Path

import pytest
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from pydantic import ValidationError

from services.subscriptions.actions.cleanup import cleanup
from services.subscriptions.config import SubscriptionsSettings
from services.subscriptions.rules.policy import Retention
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_notices import settings


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


KEPT = Retention(
    completed_tasks=timedelta(days=30),
    idempotency_keys=timedelta(days=40),
    signature_failures=timedelta(days=50),
)


def stage(room: Room, tenant: str) -> None:
    """Three of each kind: too young, old enough, far older."""
    days = "unnest(ARRAY[{young}, {old}, 400]) AS days"
    room.change(
        "INSERT INTO billing_reconciliation_queue (id, tenant_id, task_type, counterpart, idempotency_key, payload,"
        " next_attempt_at, completed_at) SELECT %(t)s || 'tsk' || days, %(t)s, 'fetch_and_apply', 'provider',"
        " 'old' || days, '{}', now(), now() - make_interval(days => days) FROM ".replace(
            "%(t)s", f"'{tenant}'"
        )
        + days.format(young=29, old=31)
    )
    room.change(
        f"INSERT INTO idempotency_keys (tenant_id, method, key, fingerprint, response, created_at)"
        f" SELECT '{tenant}', 'Old', days::text, '{{}}', '', now() - make_interval(days => days) FROM "
        + days.format(young=39, old=41)
    )
    room.change(
        f"INSERT INTO billing_signature_failures (id, room, endpoint, created_at)"
        f" SELECT '{tenant}' || days, 'subscriptions', '/payment/verify', now() - make_interval(days => days) FROM "
        + days.format(young=49, old=51)
    )


async def test_retention_is_configuration_and_a_rehearsal_counts_what_a_run_deletes(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(room, tenant)
    told = []
    for dry_run in (True, False, False):
        told.append(await cleanup(room.engine, KEPT, now=room.clock(), dry_run=dry_run))

    dry, done, again = told
    assert dry == done
    assert (done.tasks >= 2, done.keys >= 2, done.signature_failures >= 2) == (True, True, True)
    assert again.rows == 0, "nothing is left to forget"
    left = room.rows(
        "SELECT (SELECT count(*) FROM billing_reconciliation_queue WHERE tenant_id = %s) AS tasks,"
        " (SELECT count(*) FROM idempotency_keys WHERE tenant_id = %s) AS keys,"
        " (SELECT count(*) FROM billing_signature_failures WHERE starts_with(id, %s)) AS failures",
        *(tenant, tenant, tenant),
    )
    assert left == [{"tasks": 1, "keys": 1, "failures": 1}]

    stage(room, f"{tenant}_b")
    monkeypatch.setattr("services.subscriptions.actions.cleanup.DELETED_AT_MOST", 1)
    for dry_run in (True, False):
        bounded = await cleanup(room.engine, KEPT, now=room.clock(), dry_run=dry_run)
        assert (bounded.tasks, bounded.keys, bounded.signature_failures) == (1, 1, 1)


NAMES = {
    "SUBSCRIPTIONS_TASK_RETENTION_DAYS": "completed_tasks",
    "SUBSCRIPTIONS_IDEMPOTENCY_KEY_RETENTION_DAYS": "idempotency_keys",
    "SUBSCRIPTIONS_SIGNATURE_FAILURE_RETENTION_DAYS": "signature_failures",
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_retention_is_a_setting_with_bounds(name: str) -> None:
    assert settings().policy.retention == Retention()
    assert getattr(settings(**{name.lower(): 33}).policy.retention, NAMES[name]) == timedelta(days=33)
    for wrong in (0, 3651):
        with pytest.raises(ValidationError):
            settings(**{name.lower(): wrong})


def test_the_page_names_every_setting_of_this_rooms_own_with_its_default() -> None:
    page = Path("docs/subscriptions.md").read_text()
    prefix = "subscriptions_"
    known = {"subscriptions_listen", "subscriptions_database_url", "subscriptions_pool_size"}
    for name, field in SubscriptionsSettings.model_fields.items():
        if name.startswith(prefix) and name not in known and not name.endswith("metrics_listen"):
            assert f"| `{name.upper()}` | {field.default} |" in page, name
