"""What somebody with the keys to the database can do to a ledger, and the check that must name it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_pb2 as pb
from psycopg.rows import dict_row

from services.ledger.actions import audit as actions_audit
from services.ledger.actions.audit import Audited
from services.ledger.rules import verify
from services.ledger.store import history
from services.ledger.store.audit.found import snapshot
from shared import errors
from tests.ledger.builders import (
    a_capture,
    a_debit,
    a_grant,
    a_hold,
    a_refund,
    a_restoration,
    a_revocation,
    a_void,
    an_adjustment,
    an_extension,
    in_days,
)

if TYPE_CHECKING:
    from tests.ledger.conftest import RunningLedger


class Hand:
    """Somebody with the keys to the database."""

    def __init__(self, url: str) -> None:
        self.db = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self.db.execute("SET search_path = ledger, ops")

    def run(self, statement: str, *values: Any) -> None:
        assert self.db.execute(statement, values).rowcount > 0, "nothing was tampered with"

    def look(self, query: str, *values: Any) -> list[dict[str, Any]]:
        return self.db.execute(query, values).fetchall()

    def findings(self, tenant: str) -> dict[str, dict[str, Any]]:
        """What is open, by check."""
        rows = self.look(
            "SELECT * FROM billing_integrity_reports WHERE tenant_id = %s AND resolved_at IS NULL", tenant
        )
        return {row["check_type"]: row for row in rows}

    def state(self, tenant: str) -> str:
        [row] = self.look("SELECT state FROM tenant_credits WHERE tenant_id = %s", tenant)
        return str(row["state"])


async def run(ledger: RunningLedger) -> Audited:
    return await actions_audit.audit_integrity(ledger.ledger, dry_run=False, time_left_seconds=30)


async def verify_one(ledger: RunningLedger, tenant: str) -> admin_pb.Verification:
    answer = await ledger.admin.VerifyLedger(admin_pb.VerifyLedgerRequest(tenant_id=tenant))
    [verification] = answer.verifications
    assert verification.tenant_id == tenant
    return verification


async def a_history(ledger: RunningLedger, tenant: str) -> None:
    """Five lines: two grants, a debit over both lots, another one."""
    await ledger.funding.GrantCredits(a_grant(tenant, 100, reference_id="pay_perm"))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(30), reference_id="pay_sub"))
    await ledger.service.Debit(a_debit(tenant, 40, reference_id="post-1"))
    await ledger.service.Debit(a_debit(tenant, 5))


async def everything(ledger: RunningLedger, tenant: str, *, open_hold: bool = False) -> None:
    """Every operation that moves credits, on top of a history; some of it time does."""
    await a_history(ledger, tenant)
    await ledger.funding.GrantCredits(a_grant(tenant, 40, expires_at=in_days(1), reference_id="pay_short"))
    await ledger.funding.GrantCredits(a_grant(tenant, 5, expires_at=in_days(0.4 / 86_400)))
    placed = [
        (await ledger.service.PlaceHold(a_hold(tenant, 6, seconds=seconds))).hold.id
        for seconds in (600, 600, 600, 1)
    ]
    await ledger.service.ExtendHold(an_extension(tenant, placed[0], 700))
    await ledger.service.CaptureHold(a_capture(tenant, placed[0], 2, more_follows=True))
    captured = await ledger.service.CaptureHold(
        a_capture(tenant, placed[0], 7, over_capture_policy=pb.OVER_CAPTURE_POLICY_DEBIT_SHORTFALL)
    )
    await ledger.service.VoidHold(a_void(tenant, placed[1]))
    await ledger.service.RefundDebit(a_refund(tenant, captured.transaction.id, credits=3))
    with pytest.raises(errors.FailedPrecondition):
        await ledger.service.Debit(a_debit(tenant, 10**9))
    spent = await ledger.service.Debit(a_debit(tenant, 10))
    await ledger.funding.RevokeGrant(a_revocation(tenant, "pay_short", 35, reference_id="rfnd_1"))
    await asyncio.sleep(1.1)
    await ledger.service.RefundDebit(
        a_refund(tenant, spent.transaction.id, expired_policy=pb.EXPIRED_POLICY_REGRANT_30_DAYS)
    )
    await ledger.funding.RestoreGrant(a_restoration(tenant, "rfnd_1"))
    for credits in (-3, 4):
        await ledger.admin.AdjustCredits(an_adjustment(tenant, credits))
    if not open_hold:
        await ledger.service.CaptureHold(a_capture(tenant, placed[2], 0))


async def forge(ledger: RunningLedger, hand: Hand, tenant: str, *, all_of_them: bool) -> None:
    """Changes line 3's transaction as somebody does who knows how hashes are made."""
    hand.run(
        "UPDATE credit_transactions SET reason = 'forged' WHERE tenant_id = %s AND first_seq = 3", tenant
    )
    async with snapshot(ledger.ledger.engine) as db:
        lines = await history.list_lines(db, tenant, after=0, page=100)
    head = lines[1].hash
    for line in lines[2:] if all_of_them else lines[2:3]:
        assert line.header is not None
        head = verify.line_hash(head, line, line.header)
        hand.run(
            "UPDATE credit_entries SET hash = %s WHERE tenant_id = %s AND seq = %s", head, tenant, line.seq
        )
    if all_of_them:
        hand.run("UPDATE tenant_credits SET chain_head = %s WHERE tenant_id = %s", head, tenant)


# What is done by hand, and the check that must name it. The lines of `a_history`: grants 1 and 2, a debit of lines
# 3 (30 from the lot that expires) and 4 (10), a debit of line 5; where a hold is meant, it is line 6.
FORGED = "decode(repeat('ab', 32), 'hex')"
TAMPERED = {
    "balance": ("UPDATE tenant_credits SET balance = balance + 7 WHERE tenant_id = %s", "balance_mismatch"),
    "subscription balance": (
        "UPDATE tenant_credits SET permanent_balance = 1 WHERE tenant_id = %s",
        "mirror_mismatch",
    ),
    "expiry of the subscription's balance": (
        "UPDATE tenant_credits SET subscription_expires_at = now() WHERE tenant_id = %s",
        "mirror_mismatch",
    ),
    "held": ("UPDATE tenant_credits SET held = 3 WHERE tenant_id = %s", "mirror_mismatch"),
    "seq": ("UPDATE tenant_credits SET seq = seq + 1 WHERE tenant_id = %s", "sequence_gap"),
    "chain head": (
        f"UPDATE tenant_credits SET chain_head = {FORGED} WHERE tenant_id = %s",
        "chain_mismatch",
    ),
    "lot": (
        "UPDATE credit_buckets SET remaining = remaining + 1 WHERE tenant_id = %s AND lot = 1",
        "lot_mismatch",
    ),
    "lot gone": ("DELETE FROM credit_buckets WHERE tenant_id = %s AND lot = 1", "lot_mismatch"),
    "spent lot gone": ("DELETE FROM credit_buckets WHERE tenant_id = %s AND lot = 2", "lot_mismatch"),
    "last line gone": ("DELETE FROM credit_entries WHERE tenant_id = %s AND seq = 5", "sequence_gap"),
    "line gone": ("DELETE FROM credit_entries WHERE tenant_id = %s AND seq = 3", "sequence_gap"),
    "d_posted": (
        "UPDATE credit_entries SET d_posted = d_posted - 1 WHERE tenant_id = %s AND seq = 4",
        "entry_mismatch",
    ),
    "totals after": (
        "UPDATE credit_entries SET account_posted_after = 1 WHERE tenant_id = %s AND seq = 4",
        "entry_mismatch",
    ),
    "kind of a line": (
        "UPDATE credit_entries SET kind = 'expiry' WHERE tenant_id = %s AND seq = 5",
        "entry_mismatch",
    ),
    "hash": (f"UPDATE credit_entries SET hash = {FORGED} WHERE tenant_id = %s AND seq = 2", "chain_mismatch"),
    "amount": (
        "UPDATE credit_transactions SET amount = amount - 1 WHERE tenant_id = %s AND first_seq = 3",
        "ledger_sum_mismatch",
    ),
    "amount, against its lines": (
        "UPDATE credit_transactions SET amount = amount - 1 WHERE tenant_id = %s AND first_seq = 3",
        "entry_mismatch",
    ),
    "reason": (
        "UPDATE credit_transactions SET reason = 'seo.audit' WHERE tenant_id = %s AND first_seq = 5",
        "chain_mismatch",
    ),
    "reference": (
        "UPDATE credit_transactions SET reference_id = 'post-2' WHERE tenant_id = %s AND first_seq = 3",
        "chain_mismatch",
    ),
    "key": (
        "UPDATE credit_transactions SET idempotency_key = 'other' WHERE tenant_id = %s AND first_seq = 3",
        "chain_mismatch",
    ),
    "transaction gone": (
        "DELETE FROM credit_transactions WHERE tenant_id = %s AND first_seq = 3",
        "entry_mismatch",
    ),
    "transaction that no operation wrote": (
        "INSERT INTO credit_transactions SELECT tenant_id, 'txn_stray_' || tenant_id, 'stray', fingerprint,"
        " fingerprint_version, 'adjustment', 7, 'posted', reason, description, '', '', '', actor, metadata, answer,"
        " 0, 0, now() FROM credit_transactions WHERE tenant_id = %s LIMIT 1",
        "stray_transaction",
    ),
    "the same, dated back": (
        "INSERT INTO credit_transactions SELECT tenant_id, 'txn_stray_' || tenant_id, 'stray', fingerprint,"
        " fingerprint_version, 'adjustment', 7, 'posted', reason, description, '', '', '', actor, metadata, answer,"
        " 0, 0, '2001-01-01' FROM credit_transactions WHERE tenant_id = %s LIMIT 1",
        "ledger_sum_mismatch",
    ),
    "when": (
        "UPDATE credit_entries SET at = at - interval '1 day' WHERE tenant_id = %s AND seq = 5",
        "time_went_back",
    ),
    "expired": (
        "UPDATE credit_buckets SET expires_at = '2001-01-01' WHERE tenant_id = %s AND lot = 2",
        "expired_spent",
    ),
    "claimed": ("UPDATE credit_buckets SET claimed = 9 WHERE tenant_id = %s AND lot = 1", "claim_mismatch"),
    "a hold's leg": ("UPDATE credit_hold_legs SET released = 2 WHERE tenant_id = %s", "hold_mismatch"),
    "a hold": ("UPDATE credit_holds SET captured = 2 WHERE tenant_id = %s", "hold_mismatch"),
    "a hold ended": ("UPDATE credit_holds SET open = false WHERE tenant_id = %s", "hold_mismatch"),
    "a hold gone": ("DELETE FROM credit_holds WHERE tenant_id = %s", "hold_mismatch"),
    "a hold's leg gone": ("DELETE FROM credit_hold_legs WHERE tenant_id = %s", "hold_mismatch"),
    "refunded": (
        "UPDATE credit_entries SET refunded_seq = 3 WHERE tenant_id = %s AND seq = 1",
        "refund_exceeds_debit",
    ),
}
STOPS_NOTHING = {"balance_mismatch", "mirror_mismatch", "ledger_sum_mismatch", "stray_transaction"}
FREEZES_NOTHING = {
    "balance",
    "subscription balance",
    "expiry of the subscription's balance",
    "held",
    "transaction that no operation wrote",
    "the same, dated back",
}


async def stage(ledger: RunningLedger, hand: Hand, when: str, *, audited: bool) -> dict[str, str]:
    """A tenant for each thing that is done by hand, after an audit has seen it sound or before any."""
    tenants = {what: f"tampered-{when}-{number}" for number, what in enumerate(TAMPERED)}
    for what, tenant in tenants.items():
        await a_history(ledger, tenant)
        if "hold" in TAMPERED[what][1]:
            await ledger.service.PlaceHold(a_hold(tenant, 9, seconds=600))
    if audited:
        await run(ledger)
        assert not any(hand.findings(tenant) for tenant in tenants.values())
    for what, tenant in tenants.items():
        hand.run(TAMPERED[what][0], tenant)
    return tenants
