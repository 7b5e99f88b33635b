"""Mirrors that a hand has edited are written anew from the lots: audited, once per key, and no credit moves."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_pb2 as pb

from services.ledger.rules.model import Noted
from services.ledger.rules.requests import Debit, RebuildMirrors
from shared import errors
from tests.conftest import Database
from tests.ledger.builders import a_debit, a_grant, a_hold, in_days
from tests.ledger.conftest import RunningLedger
from tests.ledger.tampering import Hand, a_history, run, verify_one


def a_rebuild(tenant: str, **changes: str) -> admin_pb.RebuildMirrorsRequest:
    values = {"idempotency_key": "T-2a", "actor": "asha", "reason": "T-2a: a mirror was edited", **changes}
    return admin_pb.RebuildMirrorsRequest(tenant_id=tenant, **values)


async def mirrors(hand: Hand, tenant: str) -> tuple[object, ...]:
    [row] = hand.look(
        "SELECT balance, subscription_balance, subscription_expires_at, permanent_balance, held, seq"
        " FROM tenant_credits WHERE tenant_id = %s",
        tenant,
    )
    return tuple(row.values())


async def test_what_the_runbooks_operator_edited_is_mended_and_the_next_audit_agrees(
    ledger: RunningLedger, hand: Hand, tenant: str, database: Database
) -> None:
    await a_history(ledger, tenant)
    right = await mirrors(hand, tenant)
    with psycopg.connect(database.url("billing_operator"), autocommit=True) as operator:
        # Runbook 2a on an account whose subscription it takes for over.
        operator.execute(
            "UPDATE tenant_credits SET balance = permanent_balance + 7 WHERE tenant_id = %s", [tenant]
        )
    await run(ledger)
    finding = hand.findings(tenant)["balance_mismatch"]["id"]

    answer = await ledger.admin.RebuildMirrors(a_rebuild(tenant))
    await ledger.admin.ResolveFinding(
        admin_pb.ResolveFindingRequest(
            finding_id=finding, idempotency_key="T-2a", actor="asha", description="T-2a: rebuilt"
        )
    )
    await run(ledger)

    assert await mirrors(hand, tenant) == right
    assert (answer.before.balance, answer.after.balance) == (92, 85)
    assert answer.before.permanent_balance == answer.after.permanent_balance == 85
    assert not answer.replayed
    assert hand.findings(tenant) == {}
    assert (await verify_one(ledger, tenant)).verified
    lines = hand.look("SELECT * FROM billing_audit_log WHERE tenant_id = %s ORDER BY created_at", tenant)
    assert [line["action"] for line in lines] == ["rebuild_mirrors", "resolve_finding"]
    assert lines[0]["actor_id"] == "asha"
    assert lines[0]["request_id"]
    assert lines[0]["metadata"]["reason"] == "T-2a: a mirror was edited"
    assert lines[0]["metadata"]["before"]["balance"] == 92
    assert lines[0]["metadata"]["after"]["balance"] == 85


async def test_every_mirror_is_written(ledger: RunningLedger, hand: Hand, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(30)))
    await ledger.funding.GrantCredits(a_grant(tenant, 20, expires_at=in_days(9)))
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    await ledger.service.PlaceHold(a_hold(tenant, 25))
    right = await mirrors(hand, tenant)
    hand.run(
        "UPDATE tenant_credits SET balance = 1, subscription_balance = 2, permanent_balance = 3, held = 4,"
        " subscription_expires_at = NULL WHERE tenant_id = %s",
        tenant,
    )
    await run(ledger)
    assert set(hand.findings(tenant)) == {"balance_mismatch", "mirror_mismatch"}

    answer = await ledger.admin.RebuildMirrors(a_rebuild(tenant))
    await run(ledger)

    assert await mirrors(hand, tenant) == right
    before = answer.before
    assert (before.balance, before.subscription_balance, before.permanent_balance, before.held) == (
        1,
        2,
        3,
        4,
    )
    assert not before.HasField("subscription_expires_at")
    assert (answer.after.subscription_balance, answer.after.held) == (50, 25)
    assert answer.after.HasField("subscription_expires_at")
    assert hand.findings(tenant) == {}


async def test_a_repeat_answers_the_first_and_changes_nothing(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET balance = 1 WHERE tenant_id = %s", tenant)
    answers = await asyncio.gather(*(ledger.admin.RebuildMirrors(a_rebuild(tenant)) for _ in range(8)))
    hand.run("UPDATE tenant_credits SET balance = 2 WHERE tenant_id = %s", tenant)

    again = await ledger.admin.RebuildMirrors(a_rebuild(tenant))

    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 7
    assert {(each.before.balance, each.after.balance) for each in [*answers, again]} == {(1, 85)}
    assert again.replayed
    assert (await mirrors(hand, tenant))[0] == 2, "a repeat writes nothing"
    assert len(hand.look("SELECT FROM billing_audit_log WHERE tenant_id = %s", tenant)) == 1
    with pytest.raises(errors.FailedPrecondition) as refused:
        await ledger.admin.RebuildMirrors(a_rebuild(tenant, actor="ben"))
    assert (refused.value.reason, refused.value.metadata["field"]) == ("IDEMPOTENCY_KEY_REUSED", "actor")


async def test_a_rebuild_among_debits_loses_none_of_them(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 1000))
    hand.run("UPDATE tenant_credits SET balance = 1 WHERE tenant_id = %s", tenant)

    await asyncio.gather(
        *(ledger.service.Debit(a_debit(tenant, 3)) for _ in range(40)),
        *(ledger.admin.RebuildMirrors(a_rebuild(tenant, idempotency_key=f"T-{n}")) for n in range(5)),
        *(ledger.service.Debit(a_debit(tenant, 3)) for _ in range(40)),
    )

    assert (await mirrors(hand, tenant))[0] == 1000 - 80 * 3
    assert (await verify_one(ledger, tenant)).verified


async def test_two_in_one_batch_are_told_what_each_found(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    hand.run("UPDATE tenant_credits SET balance = 1 WHERE tenant_id = %s", tenant)
    rebuilds = [
        RebuildMirrors(tenant_id=tenant, idempotency_key=key, actor="asha", reason="T-2a") for key in "ab"
    ]
    debit = Debit(tenant_id=tenant, idempotency_key="d", credits=5, min_credits=5, reason="blog.publish")

    one, _, other = await ledger.ledger.lanes.submit_all([rebuilds[0], debit, rebuilds[1]])

    balances = [
        [mirrors.balance for mirrors in each.mirrors or ()]
        for each in (one, other)
        if isinstance(each, Noted)
    ]
    assert balances == [[1, 100], [95, 95]]


async def test_a_frozen_account_is_mended_while_its_credits_stand_still(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET balance = 1 WHERE tenant_id = %s", tenant)
    await ledger.admin.FreezeAccount(
        admin_pb.FreezeAccountRequest(tenant_id=tenant, idempotency_key="f", actor="asha", reason="a look")
    )
    hand.run("UPDATE tenant_credits SET permanent_balance = 9 WHERE tenant_id = %s", tenant)

    answer = await ledger.admin.RebuildMirrors(a_rebuild(tenant))

    assert answer.after.balance == 85
    assert hand.state(tenant) == "frozen"
    assert (await mirrors(hand, tenant))[-1] == 5, "no line was written"


WRONG_LOTS = {
    "changed": "UPDATE credit_buckets SET remaining = 99 WHERE tenant_id = %s AND lot = 1",
    "of another bucket": "UPDATE credit_buckets SET bucket = 'subscription' WHERE tenant_id = %s AND lot = 1",
    "gone": "DELETE FROM credit_buckets WHERE tenant_id = %s AND lot = 1",
    "its last line gone": "DELETE FROM credit_entries WHERE tenant_id = %s AND seq = 5",
}


@pytest.mark.parametrize("what", WRONG_LOTS)
async def test_wrong_lots_make_no_mirrors(ledger: RunningLedger, hand: Hand, tenant: str, what: str) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET balance = 1 WHERE tenant_id = %s", tenant)
    hand.run(WRONG_LOTS[what], tenant)
    edited = await mirrors(hand, tenant)

    with pytest.raises(errors.FailedPrecondition) as refused:
        await ledger.admin.RebuildMirrors(a_rebuild(tenant))

    assert (refused.value.reason, refused.value.metadata["tenant_id"]) == ("LOT_MISMATCH", tenant)
    assert await mirrors(hand, tenant) == edited
    assert hand.look("SELECT FROM billing_audit_log WHERE tenant_id = %s", tenant) == []


async def test_an_account_without_a_line_and_one_that_is_not_there(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 5))
    await ledger.service.Debit(a_debit(tenant, 5))

    empty = await ledger.admin.RebuildMirrors(a_rebuild(tenant))
    with pytest.raises(errors.NotFound) as unknown:
        await ledger.admin.RebuildMirrors(a_rebuild(f"{tenant}-nobody"))

    assert (empty.after.balance, empty.after.permanent_balance) == (0, 0)
    assert unknown.value.reason == "UNKNOWN_TENANT"
    assert (await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))).balance.posted == 0
