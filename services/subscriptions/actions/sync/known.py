"""Subscriptions of ours, one by one: status, cycles, plan and period, and charges that nobody told us of."""

import asyncio
from datetime import timedelta

from services.subscriptions.actions.sync.run import Notice, Run
from services.subscriptions.errors import ProviderRefused
from services.subscriptions.rules.differences import MENDED_BY_FETCHING, Difference, between
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.store import audit, sync
from services.subscriptions.store.sync import Compared
from shared.database import transaction

WALK = "sync.known"
PAGE = 100
# A charge that was under way when a subscription ended is told no later.
ENDED_WITHIN = timedelta(days=5)
BEGINNING = ("", "")


async def compare_known(run: Run) -> None:
    """Each once, from where the last run stopped and round to there, as far as the time goes."""
    begun_at = await _find_place(run)
    seen: set[str] = set()
    for begin in dict.fromkeys((begun_at, BEGINNING)):
        place = begin
        while True:
            if not run.has_time():
                return
            async with transaction(run.engine) as db:
                page = await sync.list_known(
                    db,
                    tenant_id=run.tenant_id,
                    after=place,
                    ended_since=run.clock() - ENDED_WITHIN,
                    limit=PAGE,
                )
            fresh = [each for each in page if each.known.id not in seen]
            await asyncio.gather(*(_compare(run, each) for each in fresh))
            if run.is_down:
                run.finished = False
                return
            seen |= {each.known.id for each in fresh}
            if len(page) < PAGE or len(fresh) < len(page):
                break
            place = page[-1].known.tenant_id, page[-1].known.id
            await _save_place(run, place)
    await _save_place(run, BEGINNING)


async def _compare(run: Run, ours: Compared) -> None:
    known = ours.known
    try:
        snapshot = await run.ask(lambda: run.razorpay.fetch_subscription(known.id))
    except ProviderRefused as refusal:
        run.compared += 1
        run.differences += 1
        run.tell(
            Notice(
                f"subscriptions.sync.unknown_at_provider:{known.id}",
                "critical",
                "The provider does not know a subscription that we hold",
                known.tenant_id,
                {"subscription_id": known.id, "answer": refusal.message},
            )
        )
        return
    if snapshot is None:
        return
    run.compared += 1
    found = between(known, snapshot, payments=ours.payments, plan_of_row=ours.plan_of_row)
    run.differences += bool(found)
    for each in found:
        if each.field == "provider_plan_id":
            run.tell(_wrong_plan(known, each))
    if any(each.field in MENDED_BY_FETCHING for each in found):
        await run.owe_fetch(known)


def _wrong_plan(known: KnownSubscription, difference: Difference) -> Notice:
    return Notice(
        f"subscriptions.sync.wrong_plan:{known.id}",
        "critical",
        "A subscription charges for another plan at the provider than in our books",
        known.tenant_id,
        {"subscription_id": known.id, "ours": difference.ours, "theirs": difference.theirs},
    )


async def _find_place(run: Run) -> tuple[str, str]:
    if run.tenant_id is not None:
        return BEGINNING
    async with transaction(run.engine) as db:
        tenant_id, _, subscription_id = (await audit.find_place(db, WALK)).partition(" ")
    return tenant_id, subscription_id


async def _save_place(run: Run, place: tuple[str, str]) -> None:
    if run.dry_run or run.tenant_id is not None:
        return
    async with transaction(run.engine) as db:
        await audit.save_place(db, WALK, " ".join(place).strip())
