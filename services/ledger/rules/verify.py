"""A tenant's ledger recomputed from its lines, line by line, by code that shares nothing with what wrote them.

Memory follows lots and holds, never lines. What stands outside the chain is not proven by it: refusals and other
operations without lines, descriptions, metadata, and the ends of lots.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from services.ledger.rules.evidence import Header, HoldRow, Line, LotRow, Standing
from services.ledger.rules.findings import Found, one_each

GENESIS = bytes(32)
# The layout of a hashed line, by its first byte: ten numbers, then five texts with their lengths.
_LAYOUTS = {1: struct.Struct(">B10q")}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# What becomes of a transaction, and which lines it may consist of.
_KINDS = {
    "grant": ("posted", {"grant"}),
    "debit": ("posted", {"debit"}),
    "hold": ("held", {"hold"}),
    "capture": ("captured", {"capture", "debit", "release"}),
    "void": ("voided", {"release"}),
    "lapse": ("expired", {"release"}),
    "expiry": ("expired", {"expiry"}),
    "refund": ("posted", {"refund"}),
    "adjustment": ("posted", {"adjustment"}),
    "revoke": ("posted", {"revoke"}),
    "restore": ("posted", {"restore"}),
}
_TAKEN = ("debit", "hold", "adjustment")


@dataclass(slots=True)
class _Lot:
    bucket: str = ""
    posted: int = 0
    held: int = 0
    first: str = ""  # the transaction of its first line
    granted: int = 0
    revoked: int = 0


@dataclass(slots=True)
class _Hold:
    transaction_id: str = ""
    reserved: int = 0
    captured: int = 0
    released: int = 0


@dataclass(slots=True)
class _Booking:
    """The transaction whose lines are being read."""

    header: Header | None = None
    id: str = ""
    first_seq: int = 0
    last_seq: int = 0
    lines: int = 0
    moved: int = 0


def line_hash(previous: bytes, line: Line, header: Header, version: int = 1) -> bytes:
    """The hash that the line must carry, given the hash of the line before it."""
    numbers = _LAYOUTS[version].pack(
        version,
        line.seq,
        line.lot,
        line.d_posted,
        line.d_held,
        line.lot_posted_after,
        line.lot_held_after,
        line.account_posted_after,
        line.account_held_after,
        (line.at - _EPOCH) // _MICROSECOND,
        header.amount,
    )
    pieces = [previous, numbers]
    for text in (header.id, header.kind, header.idempotency_key, header.reason, header.reference_id):
        raw = text.encode()
        pieces += [len(raw).to_bytes(4, "big"), raw]
    return hashlib.sha256(b"".join(pieces)).digest()


def follow(head: bytes, lines: Iterable[Line]) -> tuple[bytes, list[int]]:
    """(the last line's hash, the lines whose hash is not what it must be), from the hash before the first line.

    After a wrong one its stored hash is taken for granted: what follows it is judged by itself.
    """
    wrong = []
    for line in lines:
        if line.header is None or line_hash(head, line, line.header) != line.hash:
            wrong.append(line.seq)
        head = line.hash
    return head, wrong


def _stands(hold: HoldRow) -> bool:
    """Whether a hold is open as long as something is held under it."""
    rest = hold.reserved - hold.captured - hold.released
    return hold.open == (hold.status == "held") == (rest > 0)


def _last_moment(lot: LotRow) -> datetime | None:
    """Until when any of it can be spent or captured."""
    if lot.held and lot.expires_at is not None and lot.pinned_until is not None:
        return max(lot.expires_at, lot.pinned_until)
    return lot.expires_at


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


class Verifier:
    """Reads a tenant's lines in order and says what disagrees and what could not be checked."""

    def __init__(self, tenant_id: str, *, checked: tuple[int, bytes] | None = None) -> None:
        """`checked`: a line that an audit read before, and the hash that it had."""
        self.tenant_id = tenant_id
        self.seq = 0
        self.head = GENESIS
        self.booked = 0  # transactions whose lines were read
        self.not_verified: list[str] = []
        self._checked = checked
        self._posted = self._held = 0
        self._at = datetime.min.replace(tzinfo=UTC)
        self._lots: dict[int, _Lot] = {}
        self._holds: dict[str, _Hold] = {}
        self._refunded: dict[int, int] = {}
        self._booking = _Booking()
        self._found: list[Found] = []

    @property
    def found(self) -> list[Found]:
        """What disagrees so far, by check."""
        return one_each(self._found)

    def feed(self, lines: Iterable[Line], ends: dict[int, datetime | None]) -> None:
        """Reads the next lines; `ends`: when each lot's credits expire."""
        for line in lines:
            self._order(line)
            self._totals(line)
            self._book(line)
            self._hold(line)
            if line.kind == "refund" or line.refunded_seq is not None:
                self._refund(line)
            expires_at = ends.get(line.lot)
            if (
                expires_at is not None
                and line.kind in _TAKEN
                and line.d_posted <= 0
                and line.at >= expires_at
            ):
                self._add("expired_spent", seq=line.seq, lot=line.lot, expired_at=expires_at.isoformat())
            self.seq, self.head, self._at = line.seq, line.hash, line.at

    def stop(self, why: str) -> None:
        """Nothing more is read."""
        self.not_verified.append(f"{why} after line {self.seq}")

    def close(self, standing: Standing) -> None:
        """Compares what all lines came to with what the other tables say."""
        self._end_booking()
        if self.seq != standing.seq:
            missing = f"lines {self.seq + 1}–{standing.seq}: they are missing"
            self._add("sequence_gap", seq=standing.seq, last_line=self.seq)
            if self.seq < standing.seq:
                self.not_verified.append(missing)
        if self._checked is not None and self._checked[0] > self.seq:
            self._add("sequence_gap", checked_seq=self._checked[0], last_line=self.seq)
        if self.head != standing.chain_head:
            self._add(
                "chain_mismatch", seq=self.seq, hash=self.head.hex(), chain_head=standing.chain_head.hex()
            )
        self._compare_lots(standing)
        self._compare_holds(standing)
        self._compare_transactions(standing)
        self._compare_mirrors(standing)

    def _add(self, check_type: str, **observed: Any) -> None:
        self._found.append(Found(self.tenant_id, check_type, observed))

    def _order(self, line: Line) -> None:
        gap = line.seq != self.seq + 1
        if gap:
            self._add("sequence_gap", missing_seq=self.seq + 1, found_seq=line.seq)
            self.not_verified.append(f"lines {self.seq + 1}–{line.seq - 1}: they are missing")
        if line.at < self._at:
            self._add("time_went_back", seq=line.seq, at=line.at.isoformat(), before=self._at.isoformat())
        if line.header is None:
            self._add("entry_mismatch", seq=line.seq, missing_transaction=line.transaction_id)
            self.not_verified.append(
                f"line {line.seq}: transaction {line.transaction_id}, which its hash covers, is missing"
            )
        elif gap:
            self.not_verified.append(f"line {line.seq}: its hash covers a line that is missing")
        elif line_hash(self.head, line, line.header) != line.hash:
            self._add(
                "chain_mismatch", seq=line.seq, transaction_id=line.transaction_id, hash=line.hash.hex()
            )
        if self._checked is not None and line.seq == self._checked[0] and line.hash != self._checked[1]:
            self._add(
                "chain_mismatch", seq=line.seq, hash=line.hash.hex(), checked_hash=self._checked[1].hex()
            )

    def _totals(self, line: Line) -> None:
        lot = self._lots.setdefault(line.lot, _Lot(line.bucket, first=line.transaction_id))
        expected = (
            lot.posted + line.d_posted,
            lot.held + line.d_held,
            self._posted + line.d_posted,
            self._held + line.d_held,
        )
        stored = (
            line.lot_posted_after,
            line.lot_held_after,
            line.account_posted_after,
            line.account_held_after,
        )
        if stored != expected:
            self._add("entry_mismatch", seq=line.seq, totals_after=list(stored), expected=list(expected))
        if line.bucket != lot.bucket:
            self._add("entry_mismatch", seq=line.seq, bucket=line.bucket, expected_bucket=lot.bucket)
        if not 0 <= line.lot_held_after <= line.lot_posted_after:
            self._add("lot_mismatch", seq=line.seq, lot=line.lot, posted=stored[0], held=stored[1])
        # What is stored is taken for granted from here: each line is judged by itself.
        lot.posted, lot.held, self._posted, self._held = stored
        if line.transaction_id == lot.first:
            lot.granted += line.d_posted
        if line.kind == "revoke":
            lot.revoked -= line.d_posted

    def _book(self, line: Line) -> None:
        booking = self._booking
        if line.transaction_id != booking.id:
            self._end_booking()
            booking = self._booking = _Booking(line.header, line.transaction_id, first_seq=line.seq)
        booking.last_seq = line.seq
        booking.lines += 1
        booking.moved += line.d_posted
        header = line.header
        if header is None:
            return
        status, kinds = _KINDS.get(header.kind, ("", set()))
        if line.kind not in kinds or header.status != status:
            self._add(
                "entry_mismatch", seq=line.seq, line_kind=line.kind, kind=header.kind, status=header.status
            )
        if line.at != header.created_at:
            self._add(
                "entry_mismatch",
                seq=line.seq,
                at=line.at.isoformat(),
                created_at=header.created_at.isoformat(),
            )

    def _end_booking(self) -> None:
        booking = self._booking
        header = booking.header
        if header is None:
            return
        self.booked += 1
        if booking.moved != header.amount:
            self._add(
                "entry_mismatch", transaction_id=header.id, amount=header.amount, lines_sum=booking.moved
            )
        if (header.first_seq, header.last_seq) != (booking.first_seq, booking.last_seq):
            self._add(
                "sequence_gap",
                transaction_id=header.id,
                first_seq=header.first_seq,
                last_seq=header.last_seq,
                lines=[booking.first_seq, booking.last_seq],
            )
        self._booking = _Booking()

    def _hold(self, line: Line) -> None:
        if line.header is None or not line.header.hold_id:
            return
        hold = self._holds.setdefault(line.header.hold_id, _Hold())
        match line.kind:
            case "hold":
                hold.transaction_id = line.transaction_id
                hold.reserved += line.d_held
            case "capture":
                hold.captured -= line.d_held
            case "release":
                hold.released -= line.d_held

    def _refund(self, line: Line) -> None:
        source, number, header = line.refunded, line.refunded_seq, line.header
        if source is None or number is None or source.kind not in ("debit", "capture"):
            self._add("refund_exceeds_debit", seq=line.seq, refunded_seq=number, taken=0)
            return
        total = self._refunded[number] = self._refunded.get(number, 0) + line.d_posted
        if number >= line.seq or total > -source.d_posted:
            taken = -source.d_posted
            self._add("refund_exceeds_debit", seq=line.seq, refunded_seq=number, taken=taken, refunded=total)
        # Back to the lot that it came from, or to one that was opened for it.
        elsewhere = line.lot != source.lot and self._lots[line.lot].first != line.transaction_id
        if elsewhere or (header is not None and source.transaction_id != header.refunded_transaction_id):
            self._add(
                "entry_mismatch",
                seq=line.seq,
                refunded_seq=number,
                refunded_transaction=source.transaction_id,
                refunded_lot=source.lot,
            )

    def _compare_lots(self, standing: Standing) -> None:
        rows = {row.lot: row for row in standing.lots}
        if standing.next_lot != max(rows, default=0) + 1:
            self._add("lot_mismatch", next_lot=standing.next_lot, last_lot=max(rows, default=0))
        for number in sorted(self._lots.keys() - rows.keys()):
            self._add("lot_mismatch", lot=number, missing=True, expected=self._lots[number].posted)
        for row in standing.lots:
            lines = self._lots.get(row.lot, _Lot())
            if (row.remaining, row.held) != (lines.posted, lines.held):
                self._add(
                    "lot_mismatch",
                    lot=row.lot,
                    remaining=row.remaining,
                    held=row.held,
                    expected_remaining=lines.posted,
                    expected_held=lines.held,
                )
            origin = (row.bucket, row.granted, row.grant_transaction_id)
            expected = (lines.bucket, lines.granted, lines.first)
            if origin != expected:
                self._add("lot_mismatch", lot=row.lot, origin=list(origin), expected_origin=list(expected))
            if row.closed != (row.remaining == 0):
                self._add("lot_mismatch", lot=row.lot, closed=row.closed, remaining=row.remaining)
            if row.held != standing.open_legs.get(row.lot, 0):
                self._add(
                    "hold_mismatch", lot=row.lot, held=row.held, open=standing.open_legs.get(row.lot, 0)
                )
            if (row.claimed, row.revoked) != (row.open_claims, lines.revoked):
                self._add(
                    "claim_mismatch",
                    lot=row.lot,
                    claimed=row.claimed,
                    expected_claimed=row.open_claims,
                    revoked=row.revoked,
                    expected_revoked=lines.revoked,
                )

    def _compare_holds(self, standing: Standing) -> None:
        rows = {row.id: row for row in standing.holds}
        for hold_id in sorted(self._holds.keys() - rows.keys()):
            self._add("hold_mismatch", hold_id=hold_id, missing=True)
        for row in standing.holds:
            lines = self._holds.get(row.id, _Hold())
            stored = (row.reserved, row.captured, row.released)
            legs = (row.legs_reserved, row.legs_captured, row.legs_released)
            expected = (lines.reserved, lines.captured, lines.released)
            if stored == legs == expected and _stands(row) and row.transaction_id == lines.transaction_id:
                continue
            self._add(
                "hold_mismatch",
                hold_id=row.id,
                status=row.status,
                stored=list(stored),
                legs=list(legs),
                expected=list(expected),
            )

    def _compare_transactions(self, standing: Standing) -> None:
        posted = sum(lot.posted for lot in self._lots.values())
        if standing.ledger_sum != posted:
            self._add("ledger_sum_mismatch", balance=posted, ledger_sum=standing.ledger_sum)
        for transaction_id in standing.strays:
            self._add("stray_transaction", transaction_id=transaction_id)
        for kind, reference_id, times in standing.duplicates:
            self._add("duplicate_reference", kind=kind, reference_id=reference_id, transactions=times)

    def _compare_mirrors(self, standing: Standing) -> None:
        # Against the lines, not the lots: a lot that was changed is a finding of its own.
        by_bucket = {"subscription": 0, "permanent": 0}
        for lot in self._lots.values():
            by_bucket[lot.bucket] = by_bucket.get(lot.bucket, 0) + lot.posted
        total = sum(by_bucket.values())
        both = standing.subscription_balance + standing.permanent_balance
        if standing.balance != total or both != total:
            wrong = standing.balance if standing.balance != total else both
            self._add("balance_mismatch", balance=wrong, expected_balance=total)
        mirrors = {
            "subscription_balance": (standing.subscription_balance, by_bucket["subscription"]),
            "permanent_balance": (standing.permanent_balance, by_bucket["permanent"]),
            "held": (standing.held, sum(lot.held for lot in self._lots.values())),
        }
        for name, (stored, expected) in mirrors.items():
            if stored != expected:
                self._add("mirror_mismatch", mirror=name, stored=stored, expected=expected)
        ends = [_last_moment(row) for row in standing.lots if row.bucket == "subscription" and row.remaining]
        expires_at = max((end for end in ends if end is not None), default=None)
        if standing.subscription_expires_at != expires_at:
            self._add(
                "mirror_mismatch",
                mirror="subscription_expires_at",
                stored=_iso(standing.subscription_expires_at),
                expected=_iso(expires_at),
            )
