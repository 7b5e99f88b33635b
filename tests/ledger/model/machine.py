"""Random programs: what may be asked of a ledger, in any order, with repeats, races and jumps of the clock."""

from __future__ import annotations

import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.duration_pb2 import Duration
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from shared import clock
from shared.errors import BillingError
from tests.ledger.model.alter import alterations
from tests.ledger.model.credits import (
    EXPIRE_AGAIN,
    PERMANENT,
    REGRANT_30_DAYS,
    SUBSCRIPTION,
    TO_PERMANENT,
    Booked,
    Credits,
    Refused,
)
from tests.ledger.model.follow import Asked, Follower, Plan
from tests.ledger.model.history import check_history
from tests.ledger.model.talk import CANCELLED, ONCE, THRICE, Reply, Talk

SOME = st.integers(1, 40)
PICK = st.integers(0, 10**6)
HOW = st.sampled_from([ONCE, ONCE, ONCE, ONCE, THRICE, CANCELLED])
HOW2 = HOW
RARELY = st.sampled_from([False, False, False, False, True])
TTL = st.sampled_from([2, 60, 3600, 86_400, 3 * 86_400, 7 * 86_400])
DAYS = st.sampled_from([None, None, 1, 2, 5, 9, 30])
POLICIES = {
    pb.EXPIRED_POLICY_UNSPECIFIED: EXPIRE_AGAIN,
    pb.EXPIRED_POLICY_EXPIRE_AGAIN: EXPIRE_AGAIN,
    pb.EXPIRED_POLICY_REGRANT_30_DAYS: REGRANT_30_DAYS,
    pb.EXPIRED_POLICY_TO_PERMANENT: TO_PERMANENT,
}
OVER_CAPTURE = [
    pb.OVER_CAPTURE_POLICY_UNSPECIFIED,
    pb.OVER_CAPTURE_POLICY_REJECT,
    pb.OVER_CAPTURE_POLICY_DEBIT_SHORTFALL,
]
RACERS = ["Debit", "PlaceHold", "CaptureHold", "VoidHold", "RefundDebit"]
IF_SEQ = st.sampled_from(["", "", "", "", "right", "wrong"])


class LedgerMachine(RuleBasedStateMachine):
    """One tenant from its first grant to a reckoning."""

    def __init__(self, talk: Talk, tenant: str, clock_file: Path) -> None:
        super().__init__()
        self.talk = talk
        self.tenant = tenant
        self.clock_file = clock_file
        clock.move_to(clock_file, timedelta())
        self.began = clock.now().replace(microsecond=0)
        self.number = 0
        self.follower = Follower(talk, tenant)
        # Which rules may run must not depend on what the ledger answers: the same program is run again to find others.
        self.frozen = False
        self.grants: list[str] = []
        self.revokes: list[str] = []
        self.holds: list[str] = []
        self.spendings: list[str] = []

    def key(self, kind: str = "k") -> str:
        self.number += 1
        return f"{kind}-{self.number}"

    def named(self, **values: Any) -> dict[str, Any]:
        return {"tenant_id": self.tenant, "idempotency_key": self.key(), **values}

    # -- credits in ---------------------------------------------------------------------------------------------

    @initialize(credits=SOME)
    def open(self, credits: int) -> None:
        request = funding_pb.SetEntitlementsRequest(**self.named(version=1))
        assert not isinstance(self.talk.ask("SetEntitlements", request), BillingError)
        self.follower.limits.push(1, {})
        self.grant(credits, None, ONCE, False)

    @rule(credits=SOME, days=DAYS, how=HOW, again=RARELY)
    def grant(self, credits: int, days: int | None, how: str, again: bool) -> None:
        reference = self.grants[-1] if again and self.grants else self.key("razorpay:pay")
        ends = None if days is None else self.began + timedelta(days=days)
        bucket = PERMANENT if ends is None else SUBSCRIPTION
        request = funding_pb.GrantCreditsRequest(
            **self.named(credits=credits, reference_id=reference, reason="plan.cycle", expires_at=ends),
            bucket=types.BUCKET_PERMANENT if ends is None else types.BUCKET_SUBSCRIPTION,
        )
        reply = self.follower.operate(
            "GrantCredits",
            request,
            lambda model, at, _: model.grant(at, bucket, credits, ends, reference),
            how=how,
        )
        if not isinstance(reply, BillingError):
            self.grants.append(reference)
            assert (reply.lot.granted, reply.lot.remaining, reply.lot.reference_id) == (
                *(credits, credits),
                reference,
            )

    @rule(credits=st.integers(-30, 30).filter(bool), days=DAYS, how=HOW)
    def adjust(self, credits: int, days: int | None, how: str) -> None:
        ends = None if days is None or credits < 0 else self.began + timedelta(days=days)
        bucket = PERMANENT if ends is None else SUBSCRIPTION
        request = admin_pb.AdjustCreditsRequest(
            **self.named(credits=credits, reason="admin.adjustment", description="ticket 7", expires_at=ends),
            bucket=types.BUCKET_UNSPECIFIED if ends is None else types.BUCKET_SUBSCRIPTION,
            actor="ops@example.com",
        )
        self.follower.operate(
            "AdjustCredits", request, lambda model, at, _: model.adjust(at, credits, bucket, ends), how=how
        )

    # -- credits out --------------------------------------------------------------------------------------------

    @rule(credits=SOME, least=st.sampled_from([None, None, 1, 5]), condition=IF_SEQ, dry=RARELY, how=HOW)
    def debit(self, credits: int, least: int | None, condition: str, dry: bool, how: str) -> None:
        lowest = None if least is None else min(least, credits)
        request = pb.DebitRequest(
            **self.named(credits=credits, reason="blog.publish", min_credits=lowest, dry_run=dry),
            metadata={"post": str(self.number)},
        )
        plan = self.conditional(
            request,
            condition,
            lambda model, at, reply: model.debit(at, credits, least=lowest, transaction_id=spent_by(reply)),
        )
        self.note_spending(self.follower.operate("Debit", request, plan, how=how), dry)

    @rule(credits=SOME, ttl=TTL, condition=IF_SEQ, dry=RARELY, how=HOW)
    def place(self, credits: int, ttl: int, condition: str, dry: bool, how: str) -> None:
        request = pb.PlaceHoldRequest(
            **self.named(
                credits=credits, reason="media.transcode", ttl=duration(timedelta(seconds=ttl)), dry_run=dry
            )
        )
        plan = self.conditional(
            request,
            condition,
            lambda model, at, reply: model.place(at, credits, timedelta(seconds=ttl), hold_of(reply)),
        )
        reply = self.follower.operate("PlaceHold", request, plan, how=how)
        if not isinstance(reply, BillingError) and not dry:
            self.holds.append(reply.hold.id)

    @rule(
        pick=PICK,
        credits=SOME,
        more=st.booleans(),
        policy=st.sampled_from(OVER_CAPTURE),
        how=HOW,
        nothing=RARELY,
    )
    def capture(
        self,
        pick: int,
        credits: int,
        more: bool,
        policy: pb.OverCapturePolicy.ValueType,
        how: str,
        nothing: bool,
    ) -> None:
        hold = self.some_hold(pick)
        spends = 0 if nothing and not more else credits
        request = pb.CaptureHoldRequest(
            **self.named(hold_id=hold, credits=spends, more_follows=more), over_capture_policy=policy
        )
        reply = self.follower.operate(
            "CaptureHold",
            request,
            lambda model, at, reply: model.capture(
                at,
                hold,
                spends,
                more_follows=more,
                debit_shortfall=policy == pb.OVER_CAPTURE_POLICY_DEBIT_SHORTFALL,
                transaction_id=spent_by(reply),
            ),
            how=how,
        )
        if spends:
            self.note_spending(reply, False)

    @rule(pick=PICK, how=HOW)
    def void(self, pick: int, how: str) -> None:
        hold = self.some_hold(pick)
        request = pb.VoidHoldRequest(**self.named(hold_id=hold))
        self.follower.operate("VoidHold", request, lambda model, at, _: model.void(at, hold), how=how)

    @rule(pick=PICK, ttl=TTL, how=HOW)
    def extend(self, pick: int, ttl: int, how: str) -> None:
        hold = self.some_hold(pick)
        request = pb.ExtendHoldRequest(**self.named(hold_id=hold, ttl=duration(timedelta(seconds=ttl))))
        self.follower.operate(
            "ExtendHold",
            request,
            lambda model, at, _: model.extend(at, hold, timedelta(seconds=ttl)),
            how=how,
        )

    # -- credits back -------------------------------------------------------------------------------------------

    @rule(pick=PICK, credits=st.none() | SOME, policy=st.sampled_from(sorted(POLICIES)), how=HOW)
    def refund(self, pick: int, credits: int | None, policy: pb.ExpiredPolicy.ValueType, how: str) -> None:
        if not self.spendings:
            return
        spent = self.spendings[-1 - pick % len(self.spendings)]
        request = pb.RefundDebitRequest(
            **self.named(transaction_id=spent, credits=credits, reason="blog.publish_failed"),
            expired_policy=policy,
        )
        reply = self.follower.operate(
            "RefundDebit",
            request,
            lambda model, at, _: model.refund(at, spent, credits, POLICIES[policy]),
            how=how,
        )
        if not isinstance(reply, BillingError):
            assert reply.refundable == self.follower.credits.refundable(spent)
            assert reply.transaction.refunded_transaction_id == spent

    @rule(pick=PICK, credits=SOME, how=HOW, again=RARELY)
    def revoke(self, pick: int, credits: int, how: str, again: bool) -> None:
        grant = (["razorpay:pay_unknown", *self.grants] * 2)[-1 - pick % (2 * len(self.grants) + 1)]
        reference = self.revokes[-1] if again and self.revokes else self.key("razorpay:rfnd")
        request = funding_pb.RevokeGrantRequest(
            **self.named(credits=credits, reference_id=reference, reason="payment.refund"),
            grant_reference_id=grant,
        )
        answers: list[tuple[int, int, int]] = []

        def plan(model: Credits, at: datetime, _: Reply) -> list[Booked]:
            booked, *answer = model.revoke(at, grant, credits, reference)
            answers.append(tuple(answer))  # type: ignore[arg-type]
            return booked

        reply = self.follower.operate("RevokeGrant", request, plan, how=how)
        if not isinstance(reply, BillingError):
            self.revokes.append(reference)
            assert (reply.taken, reply.claimed, reply.already_spent) == answers[-1], f"{reply} {answers}"

    @rule(pick=PICK, how=HOW)
    def restore(self, pick: int, how: str) -> None:
        if not self.revokes:
            return
        reference = self.revokes[-1 - pick % len(self.revokes)]
        request = funding_pb.RestoreGrantRequest(
            **self.named(revoke_reference_id=reference, reference_id=self.key("restore"))
        )
        self.follower.operate(
            "RestoreGrant", request, lambda model, at, _: model.restore(at, reference), how=how
        )

    @rule(pick=PICK, credits=st.lists(SOME, min_size=2, max_size=4), what=st.permutations(RACERS))
    def race(self, pick: int, credits: list[int], what: list[str]) -> None:
        """Two to four different operations on one hold and one purse at once."""
        hold = self.some_hold(pick)
        spent = self.spendings[-1 - pick % len(self.spendings)] if self.spendings else "txn_unknown"
        ttl = timedelta(hours=1)
        calls: dict[str, tuple[str, Any, Plan]] = {}
        for kind, amount in zip(what, credits, strict=False):
            calls[kind] = self.racer(kind, amount, hold, spent, ttl)
        replies = self.follower.race(list(calls.values()))
        for kind, reply in zip(calls, replies, strict=True):
            if kind in ("Debit", "CaptureHold"):
                self.note_spending(reply, False)
            elif kind == "PlaceHold" and not isinstance(reply, BillingError):
                self.holds.append(reply.hold.id)

    def racer(self, kind: str, credits: int, hold: str, spent: str, ttl: timedelta) -> tuple[str, Any, Plan]:
        named = self.named()
        if kind == "Debit":
            return (
                kind,
                pb.DebitRequest(**named, credits=credits, reason="blog.publish"),
                lambda model, at, reply: model.debit(at, credits, transaction_id=spent_by(reply)),
            )
        if kind == "PlaceHold":
            return (
                kind,
                pb.PlaceHoldRequest(**named, credits=credits, ttl=duration(ttl), reason="media.transcode"),
                lambda model, at, reply: model.place(at, credits, ttl, hold_of(reply)),
            )
        if kind == "CaptureHold":
            return (
                kind,
                pb.CaptureHoldRequest(**named, hold_id=hold, credits=credits),
                lambda model, at, reply: model.capture(at, hold, credits, transaction_id=spent_by(reply)),
            )
        if kind == "VoidHold":
            return (
                kind,
                pb.VoidHoldRequest(**named, hold_id=hold),
                lambda model, at, reply: model.void(at, hold),
            )
        return (
            kind,
            pb.RefundDebitRequest(
                **named, transaction_id=spent, credits=credits, reason="blog.publish_failed"
            ),
            lambda model, at, reply: model.refund(at, spent, credits, EXPIRE_AGAIN),
        )

    # -- freezing -----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.frozen)
    @rule(really=RARELY)
    def freeze(self, really: bool) -> None:
        if really:
            self.freezing("FreezeAccount", admin_pb.FreezeAccountRequest, frozen=True)

    @precondition(lambda self: self.frozen)
    @rule()
    def unfreeze(self) -> None:
        self.freezing("UnfreezeAccount", admin_pb.UnfreezeAccountRequest, frozen=False)

    @precondition(lambda self: self.frozen)
    @rule()
    def unfreeze_soon(self) -> None:
        """Most programs are about accounts that are not frozen."""
        self.unfreeze()

    def freezing(self, rpc: str, message: Any, *, frozen: bool) -> None:
        request = message(**self.named(actor="ops@example.com", reason="a ticket"))
        reply = self.talk.ask(rpc, request)
        assert not isinstance(reply, BillingError), reply
        if frozen:
            self.follower.touch()  # what was due may be booked on the way, but no longer afterwards
        self.follower.credits.frozen = self.frozen = frozen
        self.follower.touch()
        self.follower.asked.append(Asked(rpc, request, reply))

    # -- time ---------------------------------------------------------------------------------------------------

    @rule(pick=PICK, before=st.sampled_from([2.0, 0.004, 0.0, -0.001, -3600.0]))
    def jump(self, pick: int, before: float) -> None:
        """To shortly before, onto or past a moment at which something happens by itself."""
        edges = [*self.follower.credits.edges(), *self.follower.limits.edges()]
        ahead = [edge for edge in edges if edge > clock.now()]
        goal = ahead[pick % len(ahead)] if ahead else clock.now() + timedelta(days=1)
        offset = goal - timedelta(seconds=before) - datetime.now(UTC)
        clock.move_to(self.clock_file, max(offset, clock.offset()))
        self.follower.touch()

    @rule(dry=st.booleans())
    def settle(self, dry: bool) -> None:
        before = self.follower.seq
        request = maintenance_pb.SettleExpiredRequest(idempotency_key=self.key("job:settle"), dry_run=dry)
        reply = self.talk.ask("SettleExpired", request)
        assert not isinstance(reply, BillingError), reply
        now = clock.now()
        due = self.follower.credits.copy().settle(now - timedelta(seconds=1))
        self.follower.touch()
        if dry:
            assert self.follower.seq == before
        else:
            assert not due or not self.follower.credits.copy().settle(now - timedelta(seconds=1))

    @rule(pick=PICK)
    def look_back(self, pick: int) -> None:
        check_history(self.follower, pick)

    # -- repeats ------------------------------------------------------------------------------------------------

    @rule(pick=PICK, how=HOW2)
    def repeat(self, pick: int, how: str) -> None:
        if self.follower.asked:
            self.follower.repeat(self.follower.asked[pick % len(self.follower.asked)], how)

    @rule(pick=PICK, field=PICK)
    def repeat_altered(self, pick: int, field: int) -> None:
        if not self.follower.asked:
            return
        asked = self.follower.asked[pick % len(self.follower.asked)]
        choices = alterations(asked.request)
        name, altered = choices[field % len(choices)]
        self.follower.refuse_reuse(asked.rpc, altered, name)

    @rule(pick=PICK, rpc=st.sampled_from(["Debit", "VoidHold"]))
    def use_key_for_something_else(self, pick: int, rpc: str) -> None:
        if not self.follower.asked:
            return
        asked = self.follower.asked[pick % len(self.follower.asked)]
        if asked.rpc == rpc:
            return
        named = {"tenant_id": self.tenant, "idempotency_key": asked.request.idempotency_key}  # type: ignore[attr-defined]
        other = (
            pb.DebitRequest(**named, credits=1, reason="blog.publish")
            if rpc == "Debit"
            else pb.VoidHoldRequest(**named, hold_id="hold_1")
        )
        self.follower.refuse_reuse(rpc, other, None)

    @rule(pick=PICK, how=HOW)
    def try_again_what_was_refused_without_memory(self, pick: int, how: str) -> None:
        if not self.follower.forgotten:
            return
        rpc, request, plan = self.follower.forgotten.pop(pick % len(self.follower.forgotten))
        self.note_spending(self.follower.operate(rpc, request, plan, how=how), False)

    # -- parts --------------------------------------------------------------------------------------------------

    def some_hold(self, pick: int) -> str:
        """The latest are the likelier ones to be open; now and then one that does not exist."""
        choices = ["hold_unknown", *self.holds, *self.holds[-2:], *self.holds[-2:]]
        return choices[pick % len(choices)]

    def conditional(self, request: Any, condition: str, plan: Plan) -> Plan:
        """With `if_seq`: the seq of the last line, or one that it is not."""
        if not condition:
            return plan
        seq = request.if_seq = self.follower.seq + (condition == "wrong") * 7

        def planned(model: Credits, at: datetime, reply: Reply) -> list[Booked]:
            if isinstance(reply, BillingError) and reply.reason == "CONDITION_FAILED":
                assert reply.metadata["expected"] == str(seq)
                if reply.metadata["actual"] != str(seq) and not model.frozen:
                    raise Refused("CONDITION_FAILED")
            return plan(model, at, reply)

        return planned

    def note_spending(self, reply: Reply, dry: bool) -> None:
        if not isinstance(reply, BillingError) and not dry and spent_by(reply) in self.follower.credits.spent:
            self.spendings.append(spent_by(reply))

    def teardown(self) -> None:
        """The reckoning. What failed before it is noted as it was: a race may not fail again when it is repeated."""
        try:
            if sys.exc_info()[0] is None:
                check_history(self.follower)
        finally:
            if isinstance(
                sys.exc_info()[1], Exception
            ):  # hypothesis itself ends a program with something else
                self.talk.failures.append("\n".join([*self.talk.said, traceback.format_exc()]))
            self.talk.said.clear()


def spent_by(reply: Reply) -> str:
    return "" if isinstance(reply, BillingError) else reply.transaction.id


def hold_of(reply: Reply) -> str:
    return "" if isinstance(reply, BillingError) else reply.hold.id


def duration(length: timedelta) -> Duration:
    return Duration(seconds=int(length.total_seconds()))
