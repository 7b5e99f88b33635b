"""What was: every past line and moment, as the model remembers it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from shared.errors import BillingError
from tests.ledger.model.credits import Credits
from tests.ledger.model.follow import Follower
from tests.ledger.model.talk import moment, seen


def check_history(follower: Follower, pick: int | None = None) -> None:
    """Balances of the past and the sum of all transactions; with `pick` one of each, else all."""
    seqs = range(follower.seq + 1) if pick is None else [pick % (follower.seq + 1)]
    for seq in seqs:
        _check_line(follower, seq)
    moments = range(len(follower.past)) if pick is None else [pick % len(follower.past)]
    for index in moments:
        _check_moment(follower, index)
    if pick is None:
        _check_sums(follower)
        _check_proof(follower)


def _check_line(follower: Follower, seq: int) -> None:
    told = _balance(follower, as_of_seq=seq)
    assert told.as_of_seq == seq, told
    if seq == 0:
        assert (told.available, told.held, told.posted, list(told.lots)) == (0, 0, 0, []), told
        return
    at = moment(follower.lines[seq - 1].at)
    then = next((model for last, _, model in follower.past if last == seq), None)
    if then is not None:  # else it lies inside a step, where only the ledger knows what came first
        expected = then.balance(at)
        assert seen(told).lots == expected.lots, f"as of line {seq} at {at}: {told}\nexpected {expected}"
        assert (told.available, told.held, told.posted) == (
            *(expected.available, expected.held),
            expected.posted,
        ), f"as of line {seq} at {at}: {told}\nexpected {expected}"


def _check_moment(follower: Follower, index: int) -> None:
    """Right at a step, and half-way to the next one: what had expired by then is gone, booked or not."""
    seq, at, model = follower.past[index]
    following = follower.past[index + 1][1] if index + 1 < len(follower.past) else at
    last_of_moment = index + 1 == len(follower.past) or following > at
    if last_of_moment:
        _compare(follower, at, seq, model)
    between = at + (following - at) / 2
    apart = following - at > timedelta(milliseconds=1)  # else the ledger may be in the midst of one step
    if apart and not _claims_lapsed(model, between):
        _compare(follower, between, seq, model)


def _claims_lapsed(model: Credits, at: datetime) -> bool:
    """What a claim takes when a hold lapses, the past tells only from when it was booked."""
    then = model.copy()
    then.frozen = False
    return any(booked.kind == "revoke" for booked in then.settle(at))


def _compare(follower: Follower, at: datetime, seq: int, model: Credits) -> None:
    told = _balance(follower, as_of=at)
    expected = model.balance(at)
    steps = [(last, str(when)) for last, when, _ in follower.past]
    context = f"as of {at}, line {seq}: {told}\nexpected {expected}\nsteps {steps}"
    assert told.as_of_seq == seq, context
    assert (told.available, told.held, told.posted) == (
        *(expected.available, expected.held),
        expected.posted,
    ), context
    assert seen(told).lots == expected.lots, context


def _check_sums(follower: Follower) -> None:
    """All transactions together are what the tenant has; each key is there once."""
    listed: list[types.Transaction] = []
    request = pb.ListTransactionsRequest(tenant_id=follower.tenant, page_size=200, include_rejected=True)
    while True:
        page = follower.talk.ask("ListTransactions", request)
        listed += page.transactions
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    keys = [each.idempotency_key for each in listed]
    assert len(keys) == len(set(keys)), f"a key is there twice: {sorted(keys)}"
    posted = sum(lot.posted for lot in follower.credits.lots)
    assert sum(line.d_posted for line in follower.lines) == posted
    amounts = [(each.idempotency_key, each.amount) for each in listed]
    assert sum(amount for _, amount in amounts) == posted, f"{amounts} are not {posted}"
    lined = [each for each in listed if each.last_seq]
    assert sum(len(each.entries) for each in lined) == follower.seq
    asked = {each.request.idempotency_key for each in follower.asked}  # type: ignore[attr-defined]
    ours = {each.idempotency_key for each in lined if each.idempotency_key != each.id}
    assert ours <= asked, f"nobody asked for {ours - asked}"


def _check_proof(follower: Follower) -> None:
    """The ledger's own proof finds nothing wrong either."""
    reply = follower.talk.ask("VerifyLedger", admin_pb.VerifyLedgerRequest(tenant_id=follower.tenant))
    (told,) = reply.verifications
    assert told.verified, told
    assert told.entries == follower.seq, told


def _balance(follower: Follower, **when: Any) -> types.Balance:
    reply = follower.talk.ask("GetBalance", pb.GetBalanceRequest(tenant_id=follower.tenant, **when))
    assert not isinstance(reply, BillingError), f"{when}: {reply!r}"
    return cast(types.Balance, reply.balance)
