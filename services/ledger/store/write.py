"""What a batch changed, each table written once, in the round trip that commits."""

import json
from typing import Any

from services.ledger.rules import mirrors
from services.ledger.rules.batch import Decided
from services.ledger.rules.model import Account, Audit, Entry, Hold, Leg, Lot, Outcome, Record
from services.ledger.store.arrays import columns
from services.ledger.store.round_trip import Connection, RoundTrip
from shared import ids, metrics

INSERT_TRANSACTIONS = """
INSERT INTO credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind, amount,
    tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, actor, metadata, answer, first_seq,
    last_seq, created_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[], %s::smallint[], %s::text[], %s::bigint[],
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[], %s::jsonb[],
    %s::bigint[], %s::bigint[], %s::timestamptz[])"""

INSERT_OPERATIONS = """
INSERT INTO tenant_operations (tenant_id, idempotency_key, kind, fingerprint, fingerprint_version, rejected, answer,
    created_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[], %s::smallint[], %s::boolean[], %s::jsonb[],
    %s::timestamptz[])"""

INSERT_ENTRIES = """
INSERT INTO credit_entries (tenant_id, seq, transaction_id, lot, bucket, kind, d_posted, d_held, lot_posted_after,
    lot_held_after, account_posted_after, account_held_after, refunded_seq, at, hash)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bytea[])"""

INSERT_LOTS = """
INSERT INTO credit_buckets (tenant_id, lot, id, bucket, priority, granted, remaining, held, claimed, expires_at,
    reference_id, grant_transaction_id, closed, created_at, pinned_until)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::smallint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::timestamptz[], %s::text[], %s::text[], %s::boolean[], %s::timestamptz[],
    %s::timestamptz[])"""

UPDATE_LOTS = """
UPDATE credit_buckets b
SET remaining = u.remaining, held = u.held, claimed = u.claimed, closed = u.remaining = 0, pinned_until = u.pinned_until
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[])
    AS u (tenant_id, lot, remaining, held, claimed, pinned_until)
WHERE b.tenant_id = u.tenant_id AND b.lot = u.lot"""

# A hold is inserted when it is placed and updated afterwards; within one batch it may be both at once.
WRITE_HOLDS = """
INSERT INTO credit_holds (tenant_id, id, transaction_id, status, reserved, captured, released, open, expires_at,
    max_expires_at, created_at, reason, reference_id)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::boolean[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[])
ON CONFLICT (tenant_id, id) DO UPDATE SET status = excluded.status, captured = excluded.captured,
    released = excluded.released, open = excluded.open, expires_at = excluded.expires_at"""

WRITE_LEGS = """
INSERT INTO credit_hold_legs (tenant_id, hold_id, leg, lot, reserved, captured, released)
SELECT * FROM unnest(%s::text[], %s::text[], %s::smallint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (tenant_id, hold_id, leg) DO UPDATE SET captured = excluded.captured, released = excluded.released"""

WRITE_REVOCATIONS = """
INSERT INTO credit_revocations (tenant_id, reference_id, transaction_id, grant_reference_id, lot, asked, taken, claimed,
    restored_transaction_id, created_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::text[], %s::timestamptz[])
ON CONFLICT (tenant_id, reference_id) DO UPDATE SET taken = excluded.taken, claimed = excluded.claimed,
    restored_transaction_id = excluded.restored_transaction_id"""

WRITE_USAGE = """
INSERT INTO tenant_usage (tenant_id, limit_key, used, created_at, updated_at)
SELECT tenant_id, limit_key, used, at, at
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::timestamptz[]) AS u (tenant_id, limit_key, used, at)
ON CONFLICT (tenant_id, limit_key) DO UPDATE SET used = excluded.used, updated_at = excluded.updated_at"""

OPEN_GRACE_PERIODS = """
INSERT INTO grace_periods (tenant_id, limit_key, expires_at, created_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::timestamptz[])
ON CONFLICT (tenant_id, limit_key) DO NOTHING"""

INSERT_AUDIT = """
INSERT INTO billing_audit_log (id, room, action, actor_type, actor_id, tenant_id, resource_type, resource_id, metadata,
    request_id)
SELECT id, 'ledger', action, 'operator', actor_id, tenant_id, 'account', tenant_id, metadata, request_id
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[], %s::text[])
    AS a (id, action, actor_id, tenant_id, metadata, request_id)"""

UPDATE_ACCOUNTS = """
UPDATE tenant_credits a
SET balance = u.subscription + u.permanent, subscription_balance = u.subscription, permanent_balance = u.permanent,
    subscription_expires_at = u.subscription_expires_at, held = u.held, seq = u.seq, last_at = u.last_at,
    chain_head = u.chain_head, next_lot = u.next_lot, state = u.state, frozen_reason = u.frozen_reason,
    frozen_at = u.frozen_at
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::timestamptz[],
    %s::bytea[], %s::bigint[], %s::text[], %s::text[], %s::timestamptz[])
    AS u (tenant_id, subscription, permanent, subscription_expires_at, held, seq, last_at, chain_head, next_lot, state,
        frozen_reason, frozen_at)
WHERE a.tenant_id = u.tenant_id"""


async def write(connection: Connection, decided: Decided) -> None:
    """Writes each table once and commits: one round trip. Returning means that it is durable."""
    trip = RoundTrip(connection)
    audits = _audits(decided)
    statements = _statements(decided, audits)
    for statement, values in statements:
        trip.ask(statement, values)
    # A grant that was refused opens no account.
    trip.ask("COMMIT" if statements else "ROLLBACK")
    try:
        await trip.go()
    except Exception:
        for _ in audits:
            metrics.audit_failed("ledger")
        raise
    for _, audit in audits:
        metrics.audited("ledger", audit.action)


def _statements(decided: Decided, audits: list[tuple[str, Audit]]) -> list[tuple[str, list[str]]]:
    """What is to be written, tables without a change left out."""
    of_credits = [record for record in decided.records if record.transaction is not None]
    others = [record for record in decided.records if record.transaction is None]
    added, updated = _lots(decided)
    holds = _holds(decided)
    changed = [account for tenant, account in decided.after.items() if account is not decided.before[tenant]]
    entries = [_entry_row(outcome, entry) for outcome in decided.outcomes for entry in outcome.entries]
    legs = [_leg_row(tenant, hold, leg) for tenant, hold in holds for leg in hold.legs]
    used, graces = _usage(decided)
    found = [
        (INSERT_TRANSACTIONS, columns(map(_transaction_row, of_credits), "tttbntntttttttttnnm")),
        (INSERT_OPERATIONS, columns(map(_operation_row, others), "tttbnftm")),
        (INSERT_ENTRIES, columns(entries, "tntnttnnnnnnnmb")),
        (INSERT_LOTS, columns(added, "tnttnnnnnmttfmm")),
        (UPDATE_LOTS, columns(updated, "tnnnnm")),
        (WRITE_HOLDS, columns([_hold_row(tenant, hold) for tenant, hold in holds], "ttttnnnfmmmtt")),
        (WRITE_LEGS, columns(legs, "ttnnnnn")),
        (WRITE_REVOCATIONS, columns(_revocation_rows(decided), "ttttnnnntm")),
        (WRITE_USAGE, columns(used, "ttnm")),
        (OPEN_GRACE_PERIODS, columns(graces, "ttmm")),
        (INSERT_AUDIT, columns(map(_audit_row, audits), "tttttt")),
        (UPDATE_ACCOUNTS, columns(map(_account_row, changed), "tnnmnnmbnttm")),
    ]
    return [(statement, values) for statement, values in found if values]


def _transaction_row(record: Record) -> tuple[Any, ...]:
    transaction = record.transaction
    assert transaction is not None  # noqa: S101
    return (
        transaction.tenant_id,
        transaction.id,
        transaction.idempotency_key,
        record.fingerprint,
        record.fingerprint_version,
        transaction.kind,
        transaction.amount,
        transaction.status,
        transaction.reason,
        transaction.description,
        transaction.reference_id,
        transaction.hold_id,
        transaction.refunded_transaction_id,
        transaction.actor,
        _json(dict(transaction.metadata)) if transaction.metadata else "{}",
        _json(record.answer),
        transaction.first_seq,
        transaction.last_seq,
        transaction.created_at,
    )


def _operation_row(record: Record) -> tuple[Any, ...]:
    return (
        record.tenant_id,
        record.idempotency_key,
        record.kind,
        record.fingerprint,
        record.fingerprint_version,
        record.rejected,
        _json(record.answer),
        record.decided_at,
    )


def _entry_row(outcome: Outcome, entry: Entry) -> tuple[Any, ...]:
    return (
        outcome.transaction.tenant_id,
        entry.seq,
        entry.transaction_id,
        entry.lot,
        entry.bucket,
        entry.kind,
        entry.d_posted,
        entry.d_held,
        entry.lot_posted_after,
        entry.lot_held_after,
        entry.account_posted_after,
        entry.account_held_after,
        entry.refunded_seq,
        entry.at,
        entry.hash,
    )


def _lots(decided: Decided) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Lots to insert and lots to update: each that was touched, as it is at the end of the batch."""
    ends = {
        (outcome.transaction.tenant_id, lot.lot): lot
        for outcome in decided.outcomes
        for lot in outcome.touched
    }
    added, updated = [], []
    for (tenant, number), lot in ends.items():
        if number >= decided.before[tenant].next_lot:
            added.append(_new_lot_row(tenant, lot))
        else:
            updated.append((tenant, number, lot.remaining, lot.held, lot.claimed, lot.pinned_until))
    return added, updated


def _new_lot_row(tenant: str, lot: Lot) -> tuple[Any, ...]:
    return (
        tenant,
        lot.lot,
        lot.grant_transaction_id.replace("txn_", "lot_", 1),
        lot.bucket,
        lot.priority,
        lot.granted,
        lot.remaining,
        lot.held,
        lot.claimed,
        lot.expires_at,
        lot.reference_id,
        lot.grant_transaction_id,
        lot.remaining == 0,
        lot.created_at,
        lot.pinned_until,
    )


def _holds(decided: Decided) -> list[tuple[str, Hold]]:
    ends = {
        outcome.hold.id: (outcome.transaction.tenant_id, outcome.hold)
        for outcome in decided.outcomes
        if outcome.hold is not None
    }
    return list(ends.values())


def _hold_row(tenant: str, hold: Hold) -> tuple[Any, ...]:
    return (
        tenant,
        hold.id,
        hold.transaction_id,
        hold.status,
        hold.reserved,
        hold.captured,
        hold.released,
        hold.status == "held",
        hold.expires_at,
        hold.max_expires_at,
        hold.created_at,
        hold.reason,
        hold.reference_id,
    )


def _leg_row(tenant: str, hold: Hold, leg: Leg) -> tuple[Any, ...]:
    return tenant, hold.id, leg.leg, leg.lot, leg.reserved, leg.captured, leg.released


def _revocation_rows(decided: Decided) -> list[tuple[Any, ...]]:
    ends = {
        (outcome.transaction.tenant_id, each.reference_id): each
        for outcome in decided.outcomes
        for each in outcome.revocations
    }
    return [
        (
            tenant,
            each.reference_id,
            each.transaction_id,
            each.grant_reference_id,
            each.lot,
            each.asked,
            each.taken,
            each.claimed,
            each.restored_transaction_id,
            each.created_at,
        )
        for (tenant, _), each in ends.items()
    ]


def _usage(decided: Decided) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """(usage, grace periods that began), as they are at the end of the batch."""
    ends = {
        (tenant, state.limit_key): (tenant, state.limit_key, state, at)
        for tenant, state, at in decided.counted
    }
    used = [(tenant, key, state.used, at) for tenant, key, state, at in ends.values()]
    graces = [
        (tenant, key, state.grace_expires_at, at)
        for tenant, key, state, at in ends.values()
        if state.grace_expires_at is not None
    ]
    return used, graces


def _audits(decided: Decided) -> list[tuple[str, Audit]]:
    """What people did, with the tenants whom they did it to."""
    audits = [(outcome.transaction.tenant_id, outcome.audit) for outcome in decided.outcomes]
    audits += [(tenant, noted.audit) for tenant, noted in decided.noted]
    return [(tenant, audit) for tenant, audit in audits if audit is not None]


def _audit_row(tenant_and_audit: tuple[str, Audit]) -> tuple[Any, ...]:
    tenant, audit = tenant_and_audit
    return (
        ids.new_id("aud"),
        audit.action,
        audit.actor,
        tenant,
        _json({"before": audit.before, "after": audit.after, "reason": audit.reason}),
        audit.request_id,
    )


def _account_row(account: Account) -> tuple[Any, ...]:
    stands = mirrors.of(account)
    return (
        account.tenant_id,
        stands.subscription_balance,
        stands.permanent_balance,
        stands.subscription_expires_at,
        stands.held,
        account.seq,
        account.last_at,
        account.chain_head,
        account.next_lot,
        account.state,
        account.frozen_reason,
        account.frozen_at,
    )


# Kept, since `json.dumps` with separators makes an encoder for every value.
_json = json.JSONEncoder(separators=(",", ":")).encode
