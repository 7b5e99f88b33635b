"""Runbook 7: an action was debited at the wrong cost."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as pb
from billing.ledger.v1.ledger_admin_pb2_grpc import LedgerAdminServiceStub

from billctl.desk import Desk, NoDatabase, refusal
from billctl.diagnosis import (
    Diagnosis,
    Fact,
    NotDone,
    NotThere,
    Order,
    PartlyDone,
    Step,
    Stopped,
    Verdict,
)
from billctl.fixes import over_debit_sql as sql
from billctl.screen import Screen
from shared.errors import BillingError, ResourceExhausted

# As many as one call takes.
CALL = 200
PAGE = 2_000
CALL_SECONDS = 60
# Who does not answer may have done it: asked again under the same key, each answers its first result.
TRIES = 6
# Statuses of a refusal that says nothing of the debit: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE.
PASSING = frozenset({4, 8, 10, 14})
NAMED_MAX = 5


@dataclass(frozen=True)
class Asked:
    """What was typed; `cost` None stands for the published one."""

    action: str
    since: datetime
    until: datetime
    tenant_id: str = ""
    cost: int | None = None


@dataclass
class Progress:
    """What became of the debits so far."""

    given: int = 0
    credits: int = 0
    refused: list[str] = field(default_factory=list)
    elsewhere: int = 0  # given back by somebody else since they were read

    def count(self, asked: Sequence[Mapping[str, Any]], results: Sequence[pb.OverdebitResult]) -> None:
        """Add what one call answered for good."""
        for each, result in zip(asked, results, strict=True):
            if result.HasField("refund"):
                self.given += 1
                self.credits += each["owed"]
            elif result.refusal.metadata.get("refundable") == "0":
                self.elsewhere += 1
            else:
                self.refused.append(f"{result.transaction_id} {result.refusal.reason}")

    def told(self, total: int) -> str:
        """How far it came."""
        words = f"{self.given:,} of {total:,} debits, {self.credits:,} credits given back"
        if self.elsewhere:
            words += f"; {self.elsewhere:,} were given back by somebody else meanwhile"
        if self.refused:
            some = ", ".join(self.refused[:NAMED_MAX]) + ", …" * (len(self.refused) > NAMED_MAX)
            words += f"; {len(self.refused):,} refused: {some}"
        return words


async def diagnose(desk: Desk, asked: Asked, screen: Screen) -> Diagnosis:
    """Which debits of the window took more than quantity times cost, and one refund of the difference for each."""
    published = await desk.rows(sql.PUBLISHED, action=asked.action)
    versions = await desk.rows(sql.WHILE_IT_RAN, action=asked.action, since=asked.since, until=asked.until)
    cost = await _cost(desk, asked, published, versions)
    window = {
        "action": asked.action,
        "since": asked.since,
        "until": asked.until,
        "tenant": asked.tenant_id,
        "cost": cost,
    }
    [totals] = await desk.rows(sql.TOTALS, **window)
    amounts = await desk.rows(sql.AMOUNTS, **window)
    worst = await desk.rows(sql.WORST, **window)
    facts = [
        Fact(f"published cost of {asked.action}", published, sql.PUBLISHED),
        Fact("what was charged in the window", amounts, sql.AMOUNTS),
        Fact("catalogues while the window ran", versions, sql.WHILE_IT_RAN),
        Fact(f"against {cost} for each", [totals], sql.TOTALS),
        Fact("who was charged most", worst, sql.WORST),
    ]
    if asked.cost is not None and totals["debits"] and (totals["dearest_each"] or 0) < asked.cost:
        raise NotThere(
            f"--cost {asked.cost} is above what was charged: no debit of the window took more than"
            f" {totals['dearest_each']} for each. A refund only gives back"
        )
    following = _following(asked, cost, published, totals)
    who = asked.tenant_id or "all tenants"
    subject = f"{asked.action}, {who}"
    if not totals["owed_debits"]:
        given = totals["given_back_debits"]
        summary = (
            f"no debit of {totals['debits']:,} took more than {cost} for each"
            if not given
            else (f"every debit that took more than {cost} for each was given back, {given:,} of them")
        )
        return Diagnosis(subject, Verdict.OK, summary, facts, next_steps=following)
    summary = (
        f"{totals['owed_debits']:,} debits of {totals['owed_tenants']:,} tenant(s) took {totals['owed']:,} credits"
        f" too much, that nobody gave back"
    )
    step = _give_back(desk, asked, cost, totals, screen)
    return Diagnosis(subject, Verdict.CRITICAL, summary, facts, [step], following)


async def _cost(
    desk: Desk, asked: Asked, published: Sequence[Mapping[str, Any]], versions: Sequence[Mapping[str, Any]]
) -> int:
    if asked.cost is not None:
        return asked.cost
    if published:
        cost = int(published[0]["credits"])
        others = {int(row["credits"]) for row in versions if row["credits"] is not None} - {cost}
        if others:
            # A cost that was right then is no over-debit now; one that was wrong was corrected. Only people know which.
            told = ", ".join(map(str, sorted(others)))
            raise NotThere(
                f"{asked.action} was published at {told} while the window ran and is at {cost} now:"
                " say with --cost what one should have cost, and give each cost a window of its own"
            )
        return cost
    actions = ", ".join(row["action"] for row in await desk.rows(sql.ACTIONS))
    raise NotThere(f"no cost of {asked.action} is published; published are {actions}. --cost names one")


def _give_back(desk: Desk, asked: Asked, cost: int, totals: Mapping[str, Any], screen: Screen) -> Step:
    total = int(totals["owed_debits"])
    # Another cost is another refund; under the same one the same ticket goes on where it stopped.
    name = f"over-debit:{asked.action}:{cost}"

    async def act(order: Order) -> str:
        done = Progress()
        try:
            async for page in _pages(desk, asked, cost):
                for at in range(0, len(page), CALL):
                    part = page[at : at + CALL]
                    done.count(part, await _refunded(desk, part, order, order.key(name)))
                    screen.advance(len(part))
        except asyncio.CancelledError as error:
            raise Stopped(f"{done.told(total)}; then it was stopped: the same line again goes on") from error
        except (BillingError, NoDatabase) as error:
            why = refusal(error) if isinstance(error, BillingError) else str(error)
            stopped = PartlyDone if done.given else NotDone
            raise stopped(f"{done.told(total)}; then: {why}") from error
        if done.refused:
            raise PartlyDone(done.told(total))
        return done.told(max(total, done.given))

    does = f"give back {totals['owed']:,} credits, one refund for each of {total:,} debits, {CALL} a call"
    return Step(name, does, "ledger: refunds into the lots that they came from", act, units=total)


async def _pages(desk: Desk, asked: Asked, cost: int) -> AsyncIterator[list[dict[str, Any]]]:
    """The debits that are owed something, oldest first; what was given back meanwhile is not read again."""
    after: Mapping[str, Any] = {"at": asked.since, "after_tenant": "", "after_id": ""}
    while True:
        page = await desk.rows(
            sql.PAGE,
            action=asked.action,
            until=asked.until,
            tenant=asked.tenant_id,
            cost=cost,
            page=PAGE,
            **after,
        )
        owed = [row for row in page if row["owed"]]
        if owed:
            yield owed
        if len(page) < PAGE:
            return
        last = page[-1]
        after = {"at": last["created_at"], "after_tenant": last["tenant_id"], "after_id": last["id"]}


async def _refunded(
    desk: Desk, part: Sequence[Mapping[str, Any]], order: Order, key: str
) -> list[pb.OverdebitResult]:
    """One answer for each debit; those that only time refused are asked for again with the same key."""
    answers: dict[str, pb.OverdebitResult] = {}
    wanted = list(part)
    for attempt in range(TRIES):
        response = await _called(desk, wanted, order, key)
        answers.update({each.transaction_id: each for each in response.results})
        wanted = [row for row in wanted if answers[row["id"]].refusal.code in PASSING]
        if not wanted:
            break
        if attempt < TRIES - 1:
            await asyncio.sleep(2**attempt)
    return [answers[row["id"]] for row in part]


async def _called(
    desk: Desk, part: Sequence[Mapping[str, Any]], order: Order, key: str
) -> pb.RefundOverdebitsResponse:
    admin = desk.stub("ledger", LedgerAdminServiceStub)
    request = pb.RefundOverdebitsRequest(
        idempotency_key=key,
        overdebits=[
            pb.Overdebit(
                tenant_id=row["tenant_id"],
                transaction_id=row["id"],
                credits=row["owed"],
                should_cost=row["should_cost"],
            )
            for row in part
        ],
        actor=order.actor,
        reason=order.told,
    )
    for attempt in range(TRIES):
        try:
            answer: pb.RefundOverdebitsResponse = await desk.ask(
                admin.RefundOverdebits, request, seconds=CALL_SECONDS
            )
        except ResourceExhausted:
            raise
        except BillingError as error:
            if error.definite or attempt == TRIES - 1:
                raise
            await asyncio.sleep(2**attempt)
        else:
            return answer
    raise AssertionError("unreachable")


def _following(
    asked: Asked, cost: int, published: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]
) -> list[str]:
    steps = []
    if not published or published[0]["credits"] != cost:
        told = published[0]["credits"] if published else "nothing"
        steps.append(
            f"the catalogue publishes {told}: set {asked.action} to {cost} in catalog.yaml, and apply it"
            " (python -m services.subscriptions apply-catalog, or ApplyCatalog)"
        )
    if totals["over_debits"]:
        steps.append(f"the service that debits names the credits: have its owner charge {cost} for each")
    if totals["goes_on"]:
        steps.append(
            "debits after the window are too dear as well: when the service is mended, widen --until"
        )
    if totals["unjudged"]:
        steps.append(
            f"{totals['unjudged']:,} debits and captures do not say of how many they were, and were not judged: ask the"
            " service's owner"
        )
    return steps
