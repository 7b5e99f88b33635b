"""Findings are listed, and closed once in somebody's name; cleanup takes what no rule needs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from pydantic import ValidationError

from services.ledger.actions import cleanup as actions_cleanup
from services.ledger.config import LedgerSettings
from shared import errors
from tests.ledger.builders import a_grant
from tests.ledger.conftest import RunningLedger
from tests.ledger.tampering import Hand, run


async def test_findings_are_listed_most_severe_first_then_newest_in_pages(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    for number in range(5):
        hand.run(
            "INSERT INTO billing_integrity_reports (id, room, tenant_id, check_type, severity, observed, created_at)"
            " VALUES (%s, 'ledger', %s, %s, %s, '{\"n\": 1}', now() - make_interval(mins => %s))",
            *(f"fnd_{tenant}_{number}", tenant, f"check_{number}", "critical" if number % 2 else "warning"),
            number,
        )
    hand.run(
        "INSERT INTO billing_integrity_reports (id, room, tenant_id, check_type, severity, observed)"
        " VALUES (%s, 'webhooks', %s, 'silence', 'critical', '{}')",
        *(f"fnd_{tenant}_other", tenant),
    )
    found, token, pages = [], "", 0
    while token or not pages:
        answer = await ledger.admin.ListFindings(
            admin_pb.ListFindingsRequest(tenant_id=tenant, page_size=2, page_token=token)
        )
        found += [each.check_type for each in answer.findings]
        token, pages = answer.next_page_token, pages + 1

    assert found == ["check_1", "check_3", "check_0", "check_2", "check_4"]
    assert pages == 3

    async def names(**filters: Any) -> list[str]:
        answer = await ledger.admin.ListFindings(admin_pb.ListFindingsRequest(tenant_id=tenant, **filters))
        return [each.check_type for each in answer.findings]

    assert await names(severity=admin_pb.FINDING_SEVERITY_CRITICAL) == ["check_1", "check_3"]
    assert await names(check_type="check_4") == ["check_4"]
    await ledger.admin.ResolveFinding(
        admin_pb.ResolveFindingRequest(
            finding_id=f"fnd_{tenant}_1", idempotency_key="k", actor="asha", description="looked at it"
        )
    )
    assert "check_1" not in await names()
    assert "check_1" in await names(include_resolved=True)
    with pytest.raises(errors.InvalidArgument):
        await names(page_token="bm9uZQ")


async def test_a_finding_is_resolved_once_in_somebodys_name(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    hand.run("UPDATE tenant_credits SET balance = 11 WHERE tenant_id = %s", tenant)
    await run(ledger)
    request = admin_pb.ResolveFindingRequest(
        finding_id=hand.findings(tenant)["balance_mismatch"]["id"],
        idempotency_key="ticket-9",
        actor="asha",
        description="mended by runbook 2a",
    )

    first = await ledger.admin.ResolveFinding(request)
    request.actor = "ben"
    again = await ledger.admin.ResolveFinding(request)

    assert again == first
    assert first.finding.resolved_by == "asha"
    assert first.finding.HasField("resolved_at")
    [line] = hand.look("SELECT * FROM billing_audit_log WHERE tenant_id = %s", tenant)
    assert (line["action"], line["actor_id"], line["resource_id"]) == (
        "resolve_finding",
        "asha",
        request.finding_id,
    )
    assert line["metadata"]["reason"] == "mended by runbook 2a"
    assert line["metadata"]["before"]["observed"] == {"balance": 11, "expected_balance": 10}


async def test_a_finding_that_is_not_there_is_refused(ledger: RunningLedger) -> None:
    with pytest.raises(errors.NotFound) as refusal:
        await ledger.admin.ResolveFinding(
            admin_pb.ResolveFindingRequest(
                finding_id="fnd_none", idempotency_key="k", actor="asha", description="nothing"
            )
        )

    assert (refusal.value.reason, refusal.value.metadata["finding_id"]) == ("UNKNOWN_FINDING", "fnd_none")


async def test_cleanup_deletes_what_ended_long_ago_and_only_that(
    ledger: RunningLedger, hand: Hand, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, days in (("blog.posts", 31), ("blog.drafts", 29), ("seo.audits", -1), ("blog.over", 400)):
        hand.run(
            "INSERT INTO grace_periods (tenant_id, limit_key, expires_at, created_at)"
            " VALUES (%s, %s, now() - make_interval(days => %s), now())",
            *(tenant, key, days),
        )
    hand.run(
        "INSERT INTO tenant_services (tenant_id, service_code, id, enabled, limits, created_at, updated_at)"
        " VALUES (%s, 'blog', 'svc', true, %s, now(), now())",
        *(tenant, '{"posts": {"limit": 10, "kind": "hard"}, "over": {"limit": 10, "kind": "hard"}}'),
    )
    for key, used in (("blog.posts", 10), ("blog.over", 11)):
        hand.run(
            "INSERT INTO tenant_usage (tenant_id, limit_key, used, created_at, updated_at)"
            " VALUES (%s, %s, %s, now(), now())",
            *(tenant, key, used),
        )
    for room, hours in (("ledger", -25), ("ledger", -23), ("webhooks", -25)):
        hand.run(
            "INSERT INTO rate_limit_buckets (room, key, tat) VALUES (%s, %s, now() + make_interval(hours => %s))",
            *(room, f"{tenant}:{hours}", hours),
        )

    async def cleanup(*, dry_run: bool = False) -> tuple[int, int]:
        answer = await ledger.maintenance.Cleanup(
            maintenance_pb.CleanupRequest(idempotency_key="job:cleanup:now", dry_run=dry_run)
        )
        return answer.grace_periods, answer.rate_limit_buckets

    hand.run(
        "INSERT INTO grace_periods (tenant_id, limit_key, expires_at, created_at)"
        " SELECT %s || n, 'blog.posts', now() - make_interval(days => 30 + n), now() FROM generate_series(1, 5) n",
        tenant,
    )
    monkeypatch.setattr(actions_cleanup, "AT_ONCE", 2)

    assert await cleanup(dry_run=True) == (6, 1)
    assert await cleanup() == (6, 1), "what was rehearsed, in portions"
    assert await cleanup(dry_run=True) == (0, 0)
    assert await cleanup() == (0, 0)
    left = hand.look("SELECT limit_key FROM grace_periods WHERE tenant_id = %s", tenant)
    assert {row["limit_key"] for row in left} == {"blog.drafts", "seo.audits", "blog.over"}
    buckets = hand.look("SELECT room, key FROM rate_limit_buckets WHERE key LIKE %s", f"{tenant}%")
    assert {(row["room"], row["key"]) for row in buckets} == {
        ("ledger", f"{tenant}:-23"),
        ("webhooks", f"{tenant}:-25"),
    }


async def test_retention_is_configuration(ledger: RunningLedger, hand: Hand, tenant: str) -> None:
    async def cleanup(days: int) -> tuple[int, int]:
        kept = timedelta(days=days)
        room = replace(ledger.ledger, grace_retention=kept, rate_limit_retention=kept)
        return await actions_cleanup.cleanup(room, dry_run=False, time_left_seconds=30)

    await cleanup(9)  # what others left
    hand.run(
        "INSERT INTO grace_periods (tenant_id, limit_key, expires_at, created_at)"
        " VALUES (%s, 'blog.posts', now() - interval '8 days', now())",
        tenant,
    )
    hand.run(
        "INSERT INTO rate_limit_buckets (room, key, tat) VALUES ('ledger', %s, now() - interval '8 days')",
        tenant,
    )

    assert await cleanup(9) == (0, 0)
    assert await cleanup(7) == (1, 1)


@pytest.mark.parametrize("name", ["grace", "rate_limit"])
def test_retention_has_bounds(name: str) -> None:
    setting = f"ledger_{name}_retention_days"
    required = {"gateway_secret": "g" * 32, "operator_secret": "o" * 32, "room_secret": "r" * 32}
    told = {**required, "ledger_database_url": "postgresql://ledger_rw@localhost/billing"}

    assert getattr(LedgerSettings(**told, **{setting: 7}), setting) == 7
    for days in (0, -1, 10_000):
        with pytest.raises(ValidationError, match=setting):
            LedgerSettings(**told, **{setting: days})
