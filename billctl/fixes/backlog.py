"""Runbook 5: webhooks wait, are dead letters, or stopped coming."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.webhooks.v1 import webhooks_admin_pb2 as pb
from billing.webhooks.v1.webhooks_admin_pb2_grpc import WebhooksAdminServiceStub

from billctl.desk import Desk, refusal
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
from billctl.fixes import backlog_sql as sql
from billctl.fixes import moves
from billctl.looks import rooms
from shared.errors import BillingError

# As many as one call takes.
SELECTION_MAX = 10_000
DISCARDED_MAX = PORTION = 1_000
# An event waits for its next attempt for longer than this only after it failed several times.
OLD = timedelta(minutes=5)
SILENT = timedelta(minutes=30)
# Until what was requeued has been tried once; a big backlog is left to the room.
WATCH_SECONDS = 30
WATCH_EVERY_SECONDS = 0.5
NAMED_MAX = 5
EXHAUSTED, REFUSED = "attempts_exhausted", "refused"


@dataclass(frozen=True)
class Range:
    """Events to be delivered once more."""

    since: datetime
    until: datetime
    event_type: str = ""


@dataclass(frozen=True)
class Seen:
    """Everything that verdict and plan are made of."""

    inbox: Mapping[str, Any]
    letters: Sequence[Mapping[str, Any]]
    serving: Sequence[Mapping[str, Any]]
    silence_alert: bool

    def says(self, room: str) -> str:
        """What a room said of itself."""
        return next(str(row["says"]) for row in self.serving if row["room"] == room)

    @property
    def exhausted(self) -> int:
        """Dead letters that ten attempts more may deliver."""
        return sum(row["n"] for row in self.letters if row["reason"] == EXHAUSTED)

    @property
    def is_old(self) -> bool:
        """Whether events wait for longer than a moment."""
        return bool(self.inbox["oldest_seconds"] and self.inbox["oldest_seconds"] > OLD.total_seconds())

    @property
    def is_silent(self) -> bool:
        """Whether nothing came for long at a time when something should, as far as a desk can tell."""
        if self.silence_alert:
            return True
        quiet = self.inbox["quiet_seconds"]
        return bool(quiet and quiet > SILENT.total_seconds() and self.inbox["in_business_hours"])


async def diagnose(desk: Desk, replay: Range | None) -> Diagnosis:
    """What waits and why, what can be requeued, and whether anything comes at all."""
    [inbox] = await desk.rows(sql.INBOX)
    letters, endpoints = await desk.rows(sql.LETTERS), await desk.rows(sql.ENDPOINTS)
    alerts = await desk.rows(sql.ALERTS)
    serving = await rooms.ask(desk.connections.addresses)
    seen = Seen(inbox, letters, serving, any(row["key"] == "webhooks.silence" for row in alerts))
    facts = [
        Fact("the inbox", [inbox], sql.INBOX),
        Fact("dead letters", letters, sql.LETTERS),
        Fact("addresses that the provider delivers to", endpoints, sql.ENDPOINTS),
        Fact("open alerts of webhooks", alerts, sql.ALERTS),
        Fact("rooms", serving, rooms.SOURCE),
    ]
    if unreadable := await desk.rows(sql.UNREADABLE):
        facts.append(Fact("those that nobody can read", unreadable, sql.UNREADABLE))
    plan = []
    if seen.exhausted and seen.says("subscriptions") == "serving":
        plan.append(_requeue(desk, seen))
    if replay is not None:
        [count] = await desk.rows(sql.IN_RANGE, **_bounds(replay))
        if count["events"] > SELECTION_MAX:
            raise NotThere(
                f"{count['events']:,} events came in that range, and one call takes {SELECTION_MAX:,}: name smaller"
                " ranges, one after the other, or one --event-type"
            )
        facts.append(Fact("events of that range", [count], sql.IN_RANGE))
        if count["events"]:
            plan.append(_replay(desk, replay, count["events"]))
    if seen.is_silent:
        asking = "ask the provider what happened in the silence, and queue what differs"
        plan.append(moves.run_job(desk, "sync_provider", asking, "reads the provider; tasks"))
        plan.append(
            moves.run_job(desk, "reconcile", "apply what was queued", "subscriptions, ledger, provider")
        )
    verdict, summary = _verdict(seen)
    return Diagnosis("webhooks", verdict, summary, facts, plan, _following(seen, replay))


async def discard(desk: Desk, letters: Sequence[str]) -> Diagnosis:
    """The dead letters that were named, given up for good; their events stay stored."""
    ids = sorted(letters)
    there = await desk.rows(sql.NAMED, ids=ids)
    left = {row["id"] for row in there}
    taken = await desk.rows(sql.TAKEN, ids=[each for each in ids if each not in left])
    facts = [
        Fact("dead letters that were named", there, sql.NAMED),
        Fact("those that somebody took off the queue", taken, sql.TAKEN),
    ]
    unknown = [each for each in ids if each not in left | {row["id"] for row in taken}]
    if unknown:
        raise NotThere(f"there is no dead letter {', '.join(unknown[:NAMED_MAX])}: nothing was planned")
    if not there:
        who = ", ".join(sorted({row["action"].partition(".")[2] + " by " + row["actor"] for row in taken}))
        return Diagnosis("webhooks", Verdict.OK, f"nothing of it is on the queue any more: {who}", facts)
    steps = [
        f"{row['id']} failed for good after {row['retry_count']} attempts, and may go through now: billctl fix"
        " backlog without --discard requeues it"
        for row in there
        if row["reason"] == EXHAUSTED
    ]
    words = f"{len(there):,} dead letter(s) to give up: what they told of is never applied by them"
    return Diagnosis(
        "webhooks", Verdict.WARNING, words, facts, [_discard(desk, sorted(left))], steps[:NAMED_MAX]
    )


def _discard(desk: Desk, ids: Sequence[str]) -> Step:
    async def act(order: Order) -> str:
        admin = desk.stub("webhooks", WebhooksAdminServiceStub)
        request = pb.DiscardDeadLettersRequest(
            dead_letters=pb.DeadLetterIds(ids=ids),
            idempotency_key=order.key(name),
            actor=order.actor,
            reason=order.told,
        )
        count = (await desk.ask(admin.DiscardDeadLetters, request)).discarded_count
        return f"{count:,} discarded"

    name = f"discard:{ids[0] if len(ids) == 1 else hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}"
    does = f"take {len(ids):,} dead letter(s) off the queue for good; the events stay stored as dead"
    return Step(name, does, "webhook_dead_letter_queue", act)


def _verdict(seen: Seen) -> tuple[Verdict, str]:
    words = []
    if dead := sum(row["n"] for row in seen.letters):
        words.append(f"{dead:,} dead letter(s) wait for a person")
    if seen.is_old:
        words.append(
            f"{seen.inbox['waiting']:,} event(s) wait, the oldest for {_long(seen.inbox['oldest_seconds'])}"
        )
    if seen.is_silent:
        words.append(f"no event of the provider for {_long(seen.inbox['quiet_seconds'])}")
    for room in ("webhooks", "subscriptions"):
        if seen.says(room) != "serving":
            words.append(f"{room} is {seen.says(room)}")
    if not words:
        return Verdict.OK, "nothing waits for longer than a moment, and no letter is dead"
    grave = (
        seen.is_old
        or seen.is_silent
        or any(seen.says(room) != "serving" for room in ("webhooks", "subscriptions"))
    )
    return Verdict.CRITICAL if grave else Verdict.WARNING, ", ".join(words)


def _requeue(desk: Desk, seen: Seen) -> Step:
    async def act(order: Order) -> str:
        if seen.exhausted > SELECTION_MAX:
            count = await _in_portions(desk, order)
        else:
            admin = desk.stub("webhooks", WebhooksAdminServiceStub)
            request = pb.RequeueDeadLettersRequest(
                set_aside_for=EXHAUSTED,
                idempotency_key=order.key(f"requeue:{EXHAUSTED}"),
                actor=order.actor,
                reason=order.told,
            )
            count = (await desk.ask(admin.RequeueDeadLetters, request)).requeued_count
        return f"{count:,} requeued; {await _watched(desk)}"

    return Step(
        f"requeue:{EXHAUSTED}",
        f"give {seen.exhausted:,} dead letter(s) ten attempts more; what was applied before is not applied again",
        "webhook_events, webhook_dead_letter_queue; then subscriptions",
        act,
    )


async def _in_portions(desk: Desk, order: Order) -> int:
    """More than one call takes, as after a night; what dies again meanwhile is not taken up once more."""
    admin = desk.stub("webhooks", WebhooksAdminServiceStub)
    [newest] = await desk.rows(sql.NEWEST)
    count, last = 0, ""
    while True:
        bounds = {"after": last, "last": newest["id"], "portion": PORTION}
        letters = [row["id"] for row in await desk.rows(sql.PORTION, **bounds)]
        if not letters:
            return count
        request = pb.RequeueDeadLettersRequest(
            dead_letters=pb.DeadLetterIds(ids=letters),
            idempotency_key=order.key(f"requeue:{letters[0]}"),
            actor=order.actor,
            reason=order.told,
        )
        try:
            count += (await desk.ask(admin.RequeueDeadLetters, request)).requeued_count
        except BillingError as error:
            stopped = PartlyDone if count else NotDone
            raise stopped(f"{count:,} requeued; then: {refusal(error)}") from error
        except asyncio.CancelledError as error:
            raise Stopped(f"{count:,} requeued; then it was stopped: the same line again goes on") from error
        last = letters[-1]


async def _watched(desk: Desk) -> str:
    """What became of the first attempts; raises NotDone when they failed again."""
    for _ in range(int(WATCH_SECONDS / WATCH_EVERY_SECONDS)):
        await asyncio.sleep(WATCH_EVERY_SECONDS)
        [left] = await desk.rows(sql.LEFT)
        if left["dead"]:
            raise NotDone(f"{left['dead']:,} are dead letters again ({left['last_error']}): call an engineer")
        if not left["waiting"]:
            return "nothing waits any more"
    again = f", and failed again with {left['last_error']}" if left["last_error"] else ""
    return f"{left['waiting']:,} still wait{again}: look again in some minutes"


def _replay(desk: Desk, replay: Range, events: int) -> Step:
    async def act(order: Order) -> str:
        admin = desk.stub("webhooks", WebhooksAdminServiceStub)
        request = pb.ReplayEventsRequest(
            range=pb.EventRange(event_type=replay.event_type),
            idempotency_key=order.key(name),
            actor=order.actor,
            reason=order.told,
        )
        request.range.received_from.FromDatetime(replay.since)
        request.range.received_until.FromDatetime(replay.until)
        answer = await desk.ask(admin.ReplayEvents, request)
        left = answer.in_attempt_count + answer.body_removed_count
        return f"{answer.replayed_count:,} replayed" + f", {left:,} left as they are" * bool(left)

    bounds = _bounds(replay)
    name = f"replay:{bounds['since']:%Y%m%dT%H%M%SZ}:{bounds['until']:%Y%m%dT%H%M%SZ}:{replay.event_type}"
    what = f" {replay.event_type}" if replay.event_type else ""
    does = f"deliver {events:,}{what} event(s) of that range once more; what was applied answers `duplicate`"
    return Step(name, does, "webhook_events; then subscriptions decides what was ignored anew", act)


def _following(seen: Seen, replay: Range | None) -> list[str]:
    steps = []
    if seen.exhausted and seen.says("subscriptions") != "serving":
        steps.append(
            f"subscriptions is {seen.says('subscriptions')}: mend that first, then billctl fix backlog requeues"
            f" {seen.exhausted:,} dead letter(s)"
        )
    for row in seen.letters:
        if row["reason"] == REFUSED:
            steps.append(f"{row['n']:,} refused by our own contract: call an engineer, then requeue them")
        elif row["reason"] != EXHAUSTED:
            steps.append(
                f"{row['n']:,} {row['reason']}: nobody can read them. Look for the same object in the provider's"
                " dashboard, then billctl fix backlog --discard dead_… for each (docs/runbooks.md, 5b); sync_provider"
                " brings what they told of"
            )
    if seen.is_old and seen.says("subscriptions") == "serving":
        error = seen.inbox["last_error"] or "none"
        steps.append(
            f"events wait though subscriptions serves (last error: {error}): its log has their request_id"
        )
    if seen.is_silent:
        steps += [
            "in the provider's dashboard, Webhooks: is it enabled, has it this address, has it all events? Is its secret"
            " ours: billctl fix signatures",
            "deliveries `Failed` there: our door answers with an error, and a roll-back comes first when it began with a"
            " deploy; `Pending`: the provider is late, wait; then Events, Replay",
        ]
    if replay is not None:
        steps.append("what came of it a moment later: billctl tenant timeline T")
    return steps


def _bounds(replay: Range) -> dict[str, Any]:
    return {
        "since": replay.since.astimezone(UTC),
        "until": replay.until.astimezone(UTC),
        "event_type": replay.event_type,
    }


def _long(seconds: Any) -> str:
    minutes = int(seconds or 0) // 60
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"
