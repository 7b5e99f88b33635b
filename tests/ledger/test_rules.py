"""The ledger's decisions, on values alone."""

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger import errors
from services.ledger.rules import batch, chain, fingerprint, lots
from services.ledger.rules.model import (
    ACTIVE,
    FROZEN,
    GENESIS,
    PERMANENT,
    PRIORITY,
    SUBSCRIPTION,
    Account,
    Lot,
    Outcome,
)
from services.ledger.rules.requests import Debit, Grant, Operation
from shared.errors import BillingError
from shared.ids import ordered_id

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def an_account(*open_lots: Lot, **changes: object) -> Account:
    values: dict[str, object] = {
        "tenant_id": "t",
        "seq": 0,
        "last_at": NOW - timedelta(days=1),
        "chain_head": GENESIS,
        "state": ACTIVE,
        "frozen_reason": "",
        "next_lot": len(open_lots) + 1,
        "lots": lots.in_burn_order(open_lots),
        **changes,
    }
    return Account(**values)  # type: ignore[arg-type]


def a_lot(number: int, remaining: int, *, days: float | None = None, held: int = 0) -> Lot:
    bucket = PERMANENT if days is None else SUBSCRIPTION
    return Lot(
        lot=number,
        bucket=bucket,
        priority=PRIORITY[bucket],
        granted=remaining,
        remaining=remaining,
        held=held,
        expires_at=None if days is None else NOW + timedelta(days=days),
        reference_id=f"pay_{number}",
        grant_transaction_id=f"txn_{number}",
        created_at=NOW,
    )


def a_debit(credits: int, key: str = "k", **changes: object) -> Debit:
    values = {"min_credits": credits, "reason": "blog.publish", **changes}
    return Debit(tenant_id="t", idempotency_key=key, credits=credits, **values)  # type: ignore[arg-type]


def a_grant(credits: int, key: str = "g", **changes: object) -> Grant:
    values = {
        "bucket": PERMANENT,
        "expires_at": None,
        "reference_id": key,
        "reason": "credit_pack",
        **changes,
    }
    return Grant(tenant_id="t", idempotency_key=key, credits=credits, **values)  # type: ignore[arg-type]


def decide(account: Account, *operations: Operation, now: datetime = NOW) -> batch.Decided:
    known = batch.Known(now, {account.tenant_id: account}, {})
    return batch.decide(known, operations, lambda at, position: ordered_id("txn", at, position))


def outcome(answer: object) -> Outcome:
    assert isinstance(answer, Outcome), answer
    return answer


def test_lots_are_spent_by_bucket_then_expiry_then_age() -> None:
    account = an_account(
        a_lot(1, 5), a_lot(2, 5, days=9), a_lot(3, 5, days=2), a_lot(4, 5, days=2), a_lot(5, 5)
    )

    taken = outcome(decide(account, a_debit(23)).answers[0])

    assert [(entry.lot, entry.d_posted) for entry in taken.entries] == [
        (3, -5),
        (4, -5),
        (2, -5),
        (1, -5),
        (5, -3),
    ]


@pytest.mark.parametrize(("microseconds", "spendable"), [(-1, 5), (0, 0), (1, 0)])
def test_a_lot_ends_exactly_at_its_expiry(microseconds: int, spendable: int) -> None:
    account = an_account(a_lot(1, 5, days=1))

    at = NOW + timedelta(days=1, microseconds=microseconds)

    assert account.available(at) == spendable


def test_an_expiry_is_booked_before_what_comes_next_and_held_credits_stay() -> None:
    account = an_account(a_lot(1, 9, days=1, held=4), a_lot(2, 3))

    decided = decide(account, a_debit(1), now=NOW + timedelta(days=2))

    assert [record.kind for record in decided.records] == ["expiry", "debit"]
    assert decided.outcomes[0].transaction.amount == -5
    after = decided.after["t"]
    assert [(lot.lot, lot.remaining, lot.held) for lot in after.lots] == [(1, 4, 4), (2, 2, 0)]
    assert lots.totals(after, NOW + timedelta(days=2)).posted == 6


def test_a_duplicate_inside_one_batch_has_one_effect() -> None:
    decided = decide(an_account(a_lot(1, 10)), a_debit(4), a_debit(4), a_debit(5))

    first, second, third = decided.answers
    assert outcome(second).replayed
    assert outcome(second).transaction == outcome(first).transaction
    assert isinstance(third, errors.IdempotencyKeyReused)
    assert third.metadata["field"] == "credits"
    assert len(decided.records) == 1


def test_a_refusal_inside_a_batch_is_remembered_for_the_next_one_too() -> None:
    decided = decide(an_account(a_lot(1, 10)), a_debit(11), a_debit(11), a_debit(10, key="other"))

    first, second, third = decided.answers
    assert isinstance(first, errors.InsufficientCredits)
    assert isinstance(second, BillingError)
    assert second.metadata["replayed"] == "true"
    assert outcome(third).totals.available == 0
    assert [record.rejected for record in decided.records] == [True, False]


def test_a_frozen_account_refuses_and_remembers_nothing() -> None:
    decided = decide(an_account(a_lot(1, 10), state=FROZEN, frozen_reason="audit"), a_debit(1))

    assert isinstance(decided.answers[0], errors.AccountFrozen)
    assert decided.records == []


def test_time_never_stands_still_for_a_tenant() -> None:
    account = an_account(a_lot(1, 10), last_at=NOW + timedelta(hours=3))

    taken = outcome(decide(account, a_debit(1)).answers[0])

    assert taken.transaction.created_at == NOW + timedelta(hours=3, microseconds=1)


def test_ids_sort_in_the_order_of_decisions() -> None:
    decided = decide(an_account(a_lot(1, 50)), *(a_debit(1, key=str(number)) for number in range(30)))

    made = [outcome(answer).transaction.id for answer in decided.answers]

    assert made == sorted(made)


def test_every_field_of_a_fingerprint_is_told_apart() -> None:
    stored = fingerprint.of(a_debit(5, reference_id="a"))

    assert fingerprint.differing_field(a_debit(5, reference_id="a"), stored) is None
    assert fingerprint.differing_field(a_debit(5, reference_id="b"), stored) == "reference_id"
    assert fingerprint.differing_field(a_grant(5), stored) == "kind"


def test_the_chain_changes_with_every_number_and_word() -> None:
    numbers = list(range(1, 9))  # seq, lot, d_posted, d_held, the lot's two totals, the account's two
    texts = ("txn", "debit", "key", "reason", "reference")

    def line(
        previous: bytes = GENESIS,
        numbers: list[int] = numbers,
        amount: int = 9,
        at: datetime = NOW,
        texts: tuple[str, ...] = texts,
    ) -> bytes:
        return chain.line_hash(previous, *numbers, at=at, amount=amount, words=chain.words(*texts))

    original = line()
    variants = [
        line(numbers=[*numbers[:place], value + 100, *numbers[place + 1 :]])
        for place, value in enumerate(numbers)
    ]
    variants += [line(texts=(*texts[:place], "other", *texts[place + 1 :])) for place in range(len(texts))]
    variants += [line(amount=10), line(at=NOW + timedelta(microseconds=1)), line(previous=original)]
    variants.append(line(texts=("txndebit", "", *texts[2:])))

    assert len({original, *variants}) == len(variants) + 1


actions = st.one_of(
    st.tuples(st.just("grant"), st.integers(1, 50), st.one_of(st.none(), st.integers(1, 20))),
    st.tuples(st.just("debit"), st.integers(1, 60), st.just(None)),
    st.tuples(st.just("some"), st.integers(1, 60), st.just(None)),
    st.tuples(st.just("wait"), st.integers(1, 15), st.just(None)),
)


@given(st.lists(st.lists(actions, max_size=6), max_size=12))
def test_credits_are_conserved_through_any_history(history: list[list[tuple[str, int, int | None]]]) -> None:
    account, now, numbers = an_account(), NOW, count()
    granted = spent = expired = 0

    for steps in history:
        operations: list[Operation] = []
        for kind, number, days in steps:
            key = str(next(numbers))
            if kind == "wait":
                now += timedelta(days=number)
            elif kind == "grant":
                bucket = PERMANENT if days is None else SUBSCRIPTION
                expires_at = None if days is None else now + timedelta(days=days + 20)
                operations.append(a_grant(number, key=key, bucket=bucket, expires_at=expires_at))
            else:
                operations.append(a_debit(number, key=key, min_credits=1 if kind == "some" else number))
        decided = decide(account, *operations, now=now)
        for transaction in (each.transaction for each in decided.outcomes):
            granted += max(transaction.amount, 0)
            if transaction.kind == "debit":
                spent -= transaction.amount
            elif transaction.kind == "expiry":
                expired -= transaction.amount
        lines = [entry for each in decided.outcomes for entry in each.entries]
        assert [entry.seq for entry in lines] == list(range(account.seq + 1, account.seq + 1 + len(lines)))
        account = decided.after["t"]

    assert granted == spent + expired + account.posted
    assert all(0 <= lot.held <= lot.remaining for lot in account.lots)
