"""What a batch needs to know, locked and read in one round trip.

Each statement of a pipeline takes its snapshot when it runs, so everything after the lock sees what the lock waited
for. Arrays keep the number of statements the same for a batch of one and of two hundred.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from services.ledger.rules.batch import Known
from services.ledger.rules.mirrors import Stored
from services.ledger.rules.model import FROZEN, Account, Entry, Hold, Lot, Mirrors, Record, Revocation
from services.ledger.store import limits as stored_limits
from services.ledger.store.arrays import columns, texts
from services.ledger.store.round_trip import Connection, RoundTrip
from services.ledger.store.rows import (
    account_of,
    entry_of,
    hold_of,
    record_of,
    revocation_of,
    spent_of,
)

Key = tuple[str, str]

# Holds that are due are settled this many at a time: a tenant that lets thousands lapse at once pays in portions.
DUE_HOLDS_MAX = 500
# Every operation of a batch has a moment of its own, so a hold may fall due while the batch is decided.
DUE_WITHIN = timedelta(milliseconds=10)

OPEN_ACCOUNTS = """
INSERT INTO tenant_credits (tenant_id, id, last_at, chain_head, created_at)
SELECT tenant_id, id, %s, %s, %s FROM unnest(%s::text[], %s::text[]) AS opened (tenant_id, id) ORDER BY tenant_id
ON CONFLICT (tenant_id) DO NOTHING"""

# Row locks in one order, so that two lanes or processes never wait for each other in a circle.
LOCK_ACCOUNTS = """
SELECT tenant_id, seq, last_at, chain_head, state, frozen_reason, next_lot, frozen_at
FROM tenant_credits WHERE tenant_id = ANY(%s::text[]) ORDER BY tenant_id FOR NO KEY UPDATE"""

# Read after the lock was granted: a transaction's own now() would predate the wait.
CLOCK = "SELECT clock_timestamp() + make_interval(secs => %s)"

LOT = """b.lot, b.bucket, b.priority, b.granted, b.remaining, b.held, b.expires_at, b.reference_id,
       b.grant_transaction_id, b.created_at, b.claimed, b.pinned_until"""

OPEN_LOTS = (
    f"SELECT b.tenant_id, {LOT} FROM credit_buckets b WHERE b.tenant_id = ANY(%s::text[]) AND NOT b.closed"
)

TRANSACTION = """t.id, t.tenant_id, t.idempotency_key, t.kind, t.tx_status, t.amount, t.reason, t.description,
       t.reference_id, t.hold_id, t.refunded_transaction_id, t.metadata, t.first_seq, t.last_seq, t.created_at, t.actor"""

RECORD = f"t.fingerprint, t.fingerprint_version, t.answer, {TRANSACTION}"

ENTRY = """e.seq, e.transaction_id, e.lot, e.bucket, e.kind, e.d_posted, e.d_held, e.lot_posted_after,
       e.lot_held_after, e.account_posted_after, e.account_held_after, e.at, e.hash, e.refunded_seq"""

# What follows must be one index probe for each that is asked, whatever the planner believes. Plans are made once for a
# connection, when tables may be small and statistics old, and several indexes begin with the tenant: where it seems to
# have one row, walking all its rows looks as cheap as the probe. Lateral behind a limit or OFFSET 0 keeps it from
# joining in another order, and an order that only the right index has breaks the tie.
RECORDS_BY_KEY = f"""
SELECT {RECORD}
FROM unnest(%s::text[], %s::text[]) AS asked (tenant_id, idempotency_key)
CROSS JOIN LATERAL (
    SELECT * FROM credit_transactions
    WHERE tenant_id = asked.tenant_id AND idempotency_key >= asked.idempotency_key
      AND idempotency_key <= asked.idempotency_key
    ORDER BY idempotency_key LIMIT 1) AS t"""

OPERATIONS_BY_KEY = """
SELECT o.tenant_id, o.idempotency_key, o.kind, o.rejected, o.created_at, o.fingerprint, o.fingerprint_version, o.answer
FROM unnest(%s::text[], %s::text[]) AS asked (tenant_id, idempotency_key)
CROSS JOIN LATERAL (
    SELECT * FROM tenant_operations
    WHERE tenant_id = asked.tenant_id AND idempotency_key = asked.idempotency_key OFFSET 0) AS o"""

HOLDS = f"""
SELECT h.tenant_id, h.id, h.transaction_id, h.status, h.reserved, h.captured, h.released, h.expires_at,
       h.max_expires_at, h.created_at, h.reason, h.reference_id, legs.rows
FROM (
    SELECT due.* FROM unnest(%(tenants)s::text[]) AS asked (tenant_id)
    CROSS JOIN LATERAL (
        SELECT * FROM credit_holds
        WHERE tenant_id = asked.tenant_id AND open AND expires_at <= (
            SELECT greatest(clock_timestamp() + %(offset)s, last_at) + %(within)s FROM tenant_credits
            WHERE tenant_id = asked.tenant_id)
        ORDER BY expires_at LIMIT {DUE_HOLDS_MAX}) AS due
    UNION
    SELECT named.* FROM unnest(%(owners)s::text[], %(ids)s::text[]) AS asked (tenant_id, id)
    CROSS JOIN LATERAL (
        SELECT * FROM credit_holds WHERE tenant_id = asked.tenant_id AND id = asked.id OFFSET 0) AS named) h
CROSS JOIN LATERAL (
    SELECT array_agg(ARRAY[leg, lot, reserved, captured, released] ORDER BY leg) AS rows
    FROM credit_hold_legs WHERE tenant_id = h.tenant_id AND hold_id = h.id OFFSET 0) AS legs"""

BY_REFERENCE = """
SELECT asked.tenant_id, asked.kind, asked.reference_id, found.id
FROM unnest(%(owners)s::text[], %(kinds)s::text[], %(ids)s::text[]) AS asked (tenant_id, kind, reference_id)
CROSS JOIN LATERAL (
    SELECT id FROM credit_transactions
    WHERE tenant_id = asked.tenant_id AND kind = asked.kind AND kind IN ('grant', 'revoke', 'restore')
      AND tx_status <> 'rejected' AND reference_id >= asked.reference_id AND reference_id <= asked.reference_id
    ORDER BY kind, reference_id LIMIT 1) AS found"""

# The grant's first line says which lot it made.
GRANTED_LOTS = f"""
SELECT asked.tenant_id, asked.reference_id, {LOT}
FROM unnest(%(owners)s::text[], %(ids)s::text[]) AS asked (tenant_id, reference_id)
CROSS JOIN LATERAL (
    SELECT first_seq FROM credit_transactions
    WHERE tenant_id = asked.tenant_id AND kind = 'grant' AND tx_status <> 'rejected'
      AND reference_id >= asked.reference_id AND reference_id <= asked.reference_id
    ORDER BY reference_id LIMIT 1) AS granted
CROSS JOIN LATERAL (
    SELECT lot FROM credit_entries
    WHERE tenant_id = asked.tenant_id AND seq >= granted.first_seq AND seq <= granted.first_seq
    ORDER BY seq LIMIT 1) AS line
CROSS JOIN LATERAL (
    SELECT * FROM credit_buckets WHERE tenant_id = asked.tenant_id AND lot = line.lot OFFSET 0) AS b"""

REVOCATION = """r.reference_id, r.transaction_id, r.grant_reference_id, r.lot, r.asked, r.taken, r.claimed,
       r.restored_transaction_id, r.created_at"""

REVOCATIONS = f"""
SELECT r.tenant_id, {REVOCATION}, {LOT}
FROM unnest(%(owners)s::text[], %(ids)s::text[]) AS asked (tenant_id, reference_id)
CROSS JOIN LATERAL (
    SELECT * FROM credit_revocations
    WHERE tenant_id = asked.tenant_id AND reference_id = asked.reference_id OFFSET 0) AS r
CROSS JOIN LATERAL (
    SELECT * FROM credit_buckets WHERE tenant_id = r.tenant_id AND lot = r.lot OFFSET 0) AS b"""

OPEN_CLAIMS = f"SELECT r.tenant_id, {REVOCATION} FROM credit_revocations r WHERE r.tenant_id = ANY(%s) AND r.claimed > 0"

# What a refund is asked for: the lines that took credits, how much of each was given back, and their lots as they are.
SPENT = f"""
SELECT t.tenant_id, t.id, t.kind, t.tx_status, line.seq, line.lot, -line.d_posted, given.back, {LOT}
FROM unnest(%(owners)s::text[], %(ids)s::text[]) AS asked (tenant_id, id)
CROSS JOIN LATERAL (
    SELECT * FROM credit_transactions
    WHERE tenant_id = asked.tenant_id AND id >= asked.id AND id <= asked.id ORDER BY id LIMIT 1) AS t
LEFT JOIN LATERAL (
    SELECT * FROM credit_entries
    WHERE tenant_id = t.tenant_id AND seq BETWEEN t.first_seq AND t.last_seq AND d_posted < 0
    ORDER BY seq OFFSET 0) AS line ON true
LEFT JOIN LATERAL (
    SELECT coalesce(sum(d_posted), 0)::bigint AS back
    FROM (
        SELECT d_posted FROM credit_entries
        WHERE tenant_id = t.tenant_id AND refunded_seq >= line.seq AND refunded_seq <= line.seq
        ORDER BY refunded_seq OFFSET 0) AS lines) AS given ON true
LEFT JOIN LATERAL (
    SELECT * FROM credit_buckets WHERE tenant_id = t.tenant_id AND lot = line.lot OFFSET 0) AS b ON true"""

# Whether lots can be trusted: each against its last line, and all of them against the account's.
MIRRORS = """
SELECT a.tenant_id, a.balance, a.subscription_balance, a.subscription_expires_at, a.permanent_balance, a.held,
       lots.agree AND lots.posted = coalesce(line.posted, 0) AND lots.held = coalesce(line.held, 0)
FROM unnest(%s::text[]) AS asked (tenant_id)
CROSS JOIN LATERAL (SELECT * FROM tenant_credits WHERE tenant_id = asked.tenant_id OFFSET 0) AS a
LEFT JOIN LATERAL (
    SELECT account_posted_after AS posted, account_held_after AS held FROM credit_entries
    WHERE tenant_id = a.tenant_id ORDER BY seq DESC LIMIT 1) AS line ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(b.remaining), 0)::bigint AS posted, coalesce(sum(b.held), 0)::bigint AS held,
           coalesce(bool_and((b.bucket, b.remaining, b.held) IS NOT DISTINCT FROM (own.bucket, own.posted, own.held)),
               true) AS agree
    FROM credit_buckets b
    LEFT JOIN LATERAL (
        SELECT bucket, lot_posted_after AS posted, lot_held_after AS held FROM credit_entries
        WHERE tenant_id = b.tenant_id AND lot = b.lot ORDER BY lot DESC, seq DESC LIMIT 1) AS own ON true
    WHERE b.tenant_id = a.tenant_id AND NOT b.closed) AS lots"""

ENTRIES_OF_RECORDS = f"""
SELECT asked.tenant_id, {ENTRY}
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS asked (tenant_id, first_seq, last_seq)
CROSS JOIN LATERAL (
    SELECT * FROM credit_entries
    WHERE tenant_id = asked.tenant_id AND seq BETWEEN asked.first_seq AND asked.last_seq
    ORDER BY seq OFFSET 0) e"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a batch needs to know."""

    tenants: list[str]
    opening: list[tuple[str, str]]  # (tenant, account id), for operations that open an account
    keys: list[Key]
    clock_offset: timedelta
    hold_ids: list[Key]
    references: list[tuple[str, str, str]]  # (tenant, kind, reference) of what happens once per reference
    granted: list[Key]  # (tenant, reference) of grants that are taken back
    revoked: list[Key]  # (tenant, reference) of revocations that are restored
    spent: list[Key]  # (tenant, transaction) that is refunded
    mirrors: list[str]  # tenants whose mirrors are written anew
    limits: list[Key]  # (tenant, limit key)


async def load(
    connection: Connection, wanted: Wanted, *, opened_at: datetime, genesis: bytes
) -> tuple[Known, list[str]]:
    """Begins the transaction, locks the tenants and reads what they have: (known, tenants with more due holds).

    One round trip; a second where a lot is claimed by a revocation, which is rare.
    """
    trip = RoundTrip(connection)
    trip.ask("BEGIN ISOLATION LEVEL READ COMMITTED")
    if wanted.opening:
        # The epoch: the first operation's own time follows it.
        epoch = datetime.fromtimestamp(0, opened_at.tzinfo)
        trip.ask(OPEN_ACCOUNTS, [epoch, genesis, opened_at, *_texts(wanted.opening, 2)])
    tenants = texts(wanted.tenants)
    accounts = trip.ask(LOCK_ACCOUNTS, [tenants])
    clock = trip.ask(CLOCK, [wanted.clock_offset.total_seconds()])
    open_lots = trip.ask(OPEN_LOTS, [tenants])
    moments = {"tenants": tenants, "offset": wanted.clock_offset, "within": DUE_WITHIN}
    holds = trip.ask(HOLDS, _values(wanted.hold_ids) | moments)
    keys = _texts(wanted.keys, 2)
    records = trip.ask(RECORDS_BY_KEY, keys)
    operations = trip.ask(OPERATIONS_BY_KEY, keys)
    asked = _ask(trip, wanted)
    rows = await trip.go()
    ((now,),) = rows[clock]
    found = _Found(rows[accounts])
    found.take_lots(rows[open_lots])
    due = found.take_holds(rows[holds])
    known = Known(now=now, accounts={}, records={})
    for record in map(record_of, [*rows[records], *rows[operations]]):
        known.records[record.tenant_id, record.idempotency_key] = record
    _take_asked({name: rows[place] for name, place in asked.items()}, known, found)
    if claimed := found.claimed():
        cursor = await connection.execute(OPEN_CLAIMS, [claimed])
        for tenant_id, *row in await cursor.fetchall():
            found.take_revocation(tenant_id, revocation_of(row))
    known.accounts = found.accounts()
    # A frozen account's stay as they are: whoever settled them first would try for ever.
    crowded = [
        tenant_id
        for tenant_id, account in known.accounts.items()
        if due.get(tenant_id, 0) >= DUE_HOLDS_MAX and account.state != FROZEN
    ]
    return known, crowded


def _ask(trip: RoundTrip, wanted: Wanted) -> dict[str, int]:
    """Asks what only some operations need; most batches ask none of it."""
    questions: list[tuple[str, str, Sequence[Key]]] = [
        ("granted", GRANTED_LOTS, wanted.granted),
        ("revoked", REVOCATIONS, wanted.revoked),
        ("spent", SPENT, wanted.spent),
    ]
    places = {name: trip.ask(statement, _values(keys)) for name, statement, keys in questions if keys}
    if wanted.references:
        owners, kinds, ids = _texts(wanted.references, 3)
        values = {"owners": owners, "kinds": kinds, "ids": ids}
        places["referenced"] = trip.ask(BY_REFERENCE, values)
    if wanted.mirrors:
        places["mirrors"] = trip.ask(MIRRORS, [wanted.mirrors])
    if wanted.limits:
        asked = stored_limits.values_of(wanted.limits, wanted.clock_offset)
        places["limits"] = trip.ask(stored_limits.STATES, asked)
    return places


def _values(keys: Sequence[Key]) -> dict[str, Any]:
    owners, ids = _texts(keys, 2)
    return {"owners": owners, "ids": ids}


def _take_asked(rows: dict[str, list[tuple[Any, ...]]], known: Known, found: "_Found") -> None:
    for tenant_id, kind, reference_id, transaction_id in rows.get("referenced", ()):
        known.referenced[tenant_id, kind, reference_id] = transaction_id
    for tenant_id, reference_id, *lot in rows.get("granted", ()):
        known.granted_lots[tenant_id, reference_id] = found.take_lot(tenant_id, Lot(*lot))
    for tenant_id, *row in rows.get("revoked", ()):
        found.take_revocation(tenant_id, revocation_of(row[:9]))
        found.take_lot(tenant_id, Lot(*row[9:]))
    for tenant_id, transaction_id, *row in rows.get("spent", ()):
        key = tenant_id, transaction_id
        known.spent[key] = spent_of(known.spent.get(key), transaction_id, row)
        if row[6] is not None:
            found.take_lot(tenant_id, Lot(*row[6:]))
    for tenant_id, *row, sound in rows.get("mirrors", ()):
        known.stored[tenant_id] = Stored(Mirrors(*row), sound)
    for limit in rows.get("limits", ()):
        state, _ = stored_limits.state_of(limit)
        known.limits.setdefault(limit[0], {})[state.limit_key] = state


class _Found:
    """The accounts while they are put together."""

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self._rows = {row[0]: row for row in rows}
        self._lots: dict[str, dict[int, Lot]] = {tenant_id: {} for tenant_id in self._rows}
        self._holds: dict[str, dict[str, Hold]] = {}
        self._revocations: dict[str, dict[str, Revocation]] = {}

    def take_lots(self, rows: Iterable[Sequence[Any]]) -> None:
        for tenant_id, *lot in rows:
            self.take_lot(tenant_id, Lot(*lot))

    def take_lot(self, tenant_id: str, lot: Lot) -> int:
        # An account that another process opened since the lock was asked for has lots, and is not ours yet.
        self._lots.setdefault(tenant_id, {})[lot.lot] = lot
        return lot.lot

    def take_holds(self, rows: Iterable[Sequence[Any]]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for tenant_id, *row in rows:
            hold = hold_of(row)
            self._holds.setdefault(tenant_id, {})[hold.id] = hold
            counts[tenant_id] = counts.get(tenant_id, 0) + 1
        return counts

    def take_revocation(self, tenant_id: str, revocation: Revocation) -> None:
        self._revocations.setdefault(tenant_id, {})[revocation.reference_id] = revocation

    def claimed(self) -> list[str]:
        return [
            tenant_id for tenant_id, lots in self._lots.items() if any(lot.claimed for lot in lots.values())
        ]

    def accounts(self) -> dict[str, Account]:
        return {
            tenant_id: account_of(row, self._lots[tenant_id].values())._replace(
                holds=self._holds.get(tenant_id, {}),
                revocations=self._revocations.get(tenant_id, {}),
            )
            for tenant_id, row in self._rows.items()
        }


async def entries_of(connection: Connection, records: Sequence[Record]) -> dict[Key, tuple[Entry, ...]]:
    """The lines of earlier transactions, for repeats: (tenant, transaction) → lines."""
    booked = [record.transaction for record in records if record.transaction and record.transaction.last_seq]
    asked = list(dict.fromkeys((each.tenant_id, each.first_seq, each.last_seq) for each in booked))
    if not asked:
        return {}
    cursor = await connection.execute(ENTRIES_OF_RECORDS, columns(asked, "tnn"))
    found: dict[Key, list[Entry]] = {}
    for tenant_id, *row in await cursor.fetchall():
        entry = entry_of(row)
        found.setdefault((tenant_id, entry.transaction_id), []).append(entry)
    return {key: tuple(lines) for key, lines in found.items()}


def _texts(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    return columns(rows, "t" * width) or ["{}"] * width
