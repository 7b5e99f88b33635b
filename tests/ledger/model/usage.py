"""Programs that also use limits, alone and together with credits."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.duration_pb2 import Duration
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shared import clock
from shared.errors import BillingError
from tests.ledger.model.batches import BatchMachine
from tests.ledger.model.credits import Refused
from tests.ledger.model.follow import Asked, Plan, agrees
from tests.ledger.model.limits import Ceiling, Decision, Limits
from tests.ledger.model.machine import HOW, RARELY, SOME, hold_of, spent_by
from tests.ledger.model.talk import ONCE, REMEMBERED, first_time, moment, patience

KEYS = ["blog.posts", "blog.drafts", "blog.storage", "blog.seats", "media.minutes"]
AMOUNTS = st.lists(
    st.tuples(st.sampled_from(KEYS), st.integers(1, 6)),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each[0],
)
ONE_KEY = st.sampled_from([*KEYS, "blog.unknown"])
SPEND = st.sampled_from(["", "debit", "debit", "hold"])


class UsageMachine(BatchMachine):
    """One tenant with credits and limits."""

    @rule(
        value=st.integers(0, 12),
        grace=st.sampled_from([0, 60, 86_400]),
        media=st.booleans(),
        blog=st.booleans(),
    )
    def push(self, value: int, grace: int, media: bool, blog: bool) -> None:
        blog_limits = {
            "posts": Ceiling(value, addon="blog_posts"),
            "drafts": Ceiling(value, soft=True),
            "storage": Ceiling(None),
            "seats": Ceiling(value, grace_seconds=grace),
        }
        services = {"blog": blog_limits}
        if media:
            services["media"] = {"minutes": Ceiling(value)}
        version = self.follower.limits.version + 1
        request = funding_pb.SetEntitlementsRequest(
            **self.named(version=version, plan_code="pro"),
            services=[
                types.ServiceEntitlement(
                    service_code=code,
                    enabled=code != "blog" or blog,
                    limits=[limit_of(key, ceiling) for key, ceiling in limits.items()],
                )
                for code, limits in services.items()
            ],
        )
        if not blog:
            del services["blog"]
        for _ in range(2):
            reply = self.talk.ask("SetEntitlements", request)
            assert not isinstance(reply, BillingError), reply
            assert (reply.outcome, reply.version) == (funding_pb.ENTITLEMENTS_OUTCOME_APPLIED, version)
        self.follower.limits.push(version, services)
        self.follower.touch()

    @rule(back=st.integers(1, 5))
    def push_late(self, back: int) -> None:
        stored = self.follower.limits.version
        request = funding_pb.SetEntitlementsRequest(**self.named(version=max(1, stored - back)))
        reply = self.talk.ask("SetEntitlements", request)
        if request.version < stored:
            assert (reply.outcome, reply.version) == (funding_pb.ENTITLEMENTS_OUTCOME_SUPERSEDED, stored)

    @rule(amounts=AMOUNTS, how=HOW)
    def consume(self, amounts: list[tuple[str, int]], how: str) -> None:
        request = pb.ConsumeLimitsRequest(**self.named(limits=amounts_of(amounts)))

        def change(limits: Limits, at: datetime) -> list[Decision]:
            limits.consume(at, amounts)
            return limits.after(at, [key for key, _ in amounts])

        self.follower.count("ConsumeLimits", request, change, how=how)

    @rule(amounts=AMOUNTS, how=HOW)
    def release(self, amounts: list[tuple[str, int]], how: str) -> None:
        request = pb.ReleaseLimitsRequest(**self.named(limits=amounts_of(amounts)))

        def change(limits: Limits, at: datetime) -> list[Decision]:
            limits.release(at, amounts)
            return limits.after(at, [key for key, _ in amounts])

        self.follower.count("ReleaseLimits", request, change, how=how)

    @rule(key=ONE_KEY, used=st.integers(0, 20), how=HOW)
    def set_usage(self, key: str, used: int, how: str) -> None:
        request = pb.SetUsageRequest(**self.named(limit_key=key, used=used))

        def change(limits: Limits, at: datetime) -> list[Decision]:
            limits.set(at, key, used)
            return limits.after(at, [key])

        self.follower.count("SetUsage", request, change, how=how)

    @rule(key=ONE_KEY, requested=st.integers(0, 8), own=st.none() | st.integers(0, 20))
    def check(self, key: str, requested: int, own: int | None) -> None:
        began = clock.now()
        request = pb.CheckLimitRequest(
            tenant_id=self.tenant, limit_key=key, requested=requested, current_usage=own
        )
        reply = self.talk.ask("CheckLimit", request)
        self.follower.judge_limits(
            reply, lambda limits, at: [limits.decide(at, key, requested, used=own)], began
        )
        if not isinstance(reply, BillingError):
            assert reply.entitlements_version == self.follower.limits.version
            assert began - timedelta(seconds=1) <= moment(reply.as_of) <= clock.now() + timedelta(seconds=1)

    @rule(amounts=st.just([]) | AMOUNTS, spend=SPEND, credits=SOME, dry=RARELY, how=HOW)
    def authorize(
        self, amounts: list[tuple[str, int]], spend: str, credits: int, dry: bool, how: str
    ) -> None:
        if not amounts and not spend:
            return
        request = pb.AuthorizeRequest(
            **self.named(limits=amounts_of(amounts), reason="media.transcode", dry_run=dry)
        )
        ttl = timedelta(hours=1)
        if spend == "debit":
            request.debit_credits = credits
        elif spend == "hold":
            request.hold_credits = credits
            request.hold_ttl.CopyFrom(Duration(seconds=3600))
        plan: Plan = (
            (lambda model, at, reply: model.debit(at, credits, transaction_id=spent_by(reply)))
            if spend == "debit"
            else (lambda model, at, reply: model.place(at, credits, ttl, hold_of(reply)))
        )
        self.decide_together(request, amounts, plan if spend else None, how)

    def decide_together(
        self, request: pb.AuthorizeRequest, amounts: list[tuple[str, int]], plan: Plan | None, how: str = ONCE
    ) -> None:
        """Limits and credits, all or nothing."""
        follower = self.follower
        began = clock.now()
        reply = self.talk.ask("Authorize", request, how, patience())
        follower.pull()
        if isinstance(reply, BillingError):
            self.judge_joint_refusal(request, reply, amounts, plan, began)
            return

        def change(limits: Limits, at: datetime) -> list[Decision]:
            limits.consume(at, amounts)
            return limits.after(at, [key for key, _ in amounts])

        counted = follower.limits.copy()
        follower.judge_limits(reply, change, began)
        if request.dry_run:
            follower.limits = counted
        if plan is not None:
            follower.judge("Authorize", request, reply, plan, began)
            self.note_spending(reply, request.dry_run)
            if reply.HasField("hold") and not request.dry_run:
                self.holds.append(reply.hold.id)
        else:
            assert not reply.HasField("transaction"), reply
            if not request.dry_run:
                follower.asked.append(Asked("Authorize", request, first_time(reply)))
        follower.touch()

    def judge_joint_refusal(
        self,
        request: pb.AuthorizeRequest,
        refusal: BillingError,
        amounts: list[tuple[str, int]],
        plan: Plan | None,
        began: datetime,
    ) -> None:
        """Refused for what one of the parts says; nothing of any part happened."""
        self.follower.touch()
        reasons: list[Any] = []
        for at in (began, clock.now()):
            limits, credits = self.follower.limits.copy(), self.follower.credits.copy()
            credits.settle(at)
            for part in (lambda: limits.consume(at, amounts), lambda: plan and plan(credits, at, refusal)):  # noqa: B023
                try:
                    part()
                except Refused as refused:
                    reasons.append(refused)
        assert any(agrees(refusal, each) for each in reasons), (
            f"{request} was refused with {refusal!r} {refusal.metadata}, the model says {reasons}"
        )
        if refusal.reason in REMEMBERED and not request.dry_run:
            self.follower.asked.append(Asked("Authorize", request, refusal))


def amounts_of(amounts: list[tuple[str, int]]) -> list[pb.LimitAmount]:
    return [pb.LimitAmount(limit_key=key, amount=amount) for key, amount in amounts]


def limit_of(key: str, ceiling: Ceiling) -> types.Limit:
    kind = types.LIMIT_KIND_SOFT if ceiling.soft else types.LIMIT_KIND_HARD
    message = types.Limit(key=key, kind=kind, grace_seconds=ceiling.grace_seconds, addon=ceiling.addon)
    if ceiling.value is None:
        message.unlimited = True
    else:
        message.value = ceiling.value
    return message
