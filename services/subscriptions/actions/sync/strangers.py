"""The provider's own lists: subscriptions that name a tenant of ours and that we do not hold, refunds, disputes.

Lists can be asked only by when things were created, and lag behind by minutes. They are walked a week at a time up to
now; the next run begins two days before the place where this one ended, so that what was listed late is seen.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from services.subscriptions.actions.sync.money import compare_disputes, compare_refunds
from services.subscriptions.actions.sync.run import Notice, Run
from services.subscriptions.errors import ProviderRefused
from services.subscriptions.rules.differences import Commands, is_charging
from services.subscriptions.rules.events import TERMINAL, ProviderSubscription
from services.subscriptions.rules.findings import ORPHANS
from services.subscriptions.rules.purchases import was_begun_by
from services.subscriptions.store import audit, purchases, sync
from services.subscriptions.store import subscriptions as subscription_store
from shared.database import transaction
from shared.ops import store as ops

WALK = "sync.lists"
AUDITOR = "subscriptions.sync"
WINDOW = timedelta(days=7)
OVERLAP = timedelta(days=2)
# A clock that differs from the provider's must not hide the first tenant's first subscription.
SKEW = timedelta(days=1)
SHARE = 0.6
NAMED_MAX = 20

Orphans = dict[str, dict[str, ProviderSubscription]]


async def compare_lists(run: Run) -> None:
    """Adopt purchases whose answer was lost, name the orphans, and apply what went back unheard of."""
    now = run.clock()
    orphans: Orphans = {}
    moment = await _begin(run, now)
    while moment is not None and moment < now and run.has_time(SHARE):
        until = min(moment + WINDOW, now)
        if not await _compare_window(run, moment, until, orphans):
            run.finished = False
            break
        moment = until
    await _recheck(run, orphans)
    await _record(run, orphans)
    # Last, so that what was found and not recorded is found again.
    if moment is not None:
        await _save_place(run, min(moment, now - OVERLAP))


async def _begin(run: Run, now: datetime) -> datetime | None:
    async with transaction(run.engine) as db:
        place = "" if run.tenant_id is not None else await audit.find_place(db, WALK)
        first = await sync.find_first_moment(db, run.tenant_id)
    if first is None:
        return None
    return min(datetime.fromisoformat(place) if place else first - SKEW, now - OVERLAP)


async def _compare_window(run: Run, since: datetime, until: datetime, orphans: Orphans) -> bool:
    """One window of all lists; False if the provider fell silent."""
    subscriptions, refunds, disputes = await asyncio.gather(
        run.ask(lambda: run.razorpay.list_subscriptions(since, until)),
        run.ask(lambda: run.razorpay.list_refunds(since, until)),
        run.ask(lambda: run.razorpay.list_disputes(since, until)),
    )
    if subscriptions is None or refunds is None or disputes is None:
        return False
    await _compare_subscriptions(run, subscriptions, orphans)
    await compare_refunds(run, refunds)
    await compare_disputes(run, disputes)
    return not run.is_down


async def _compare_subscriptions(run: Run, listed: Sequence[ProviderSubscription], orphans: Orphans) -> None:
    named = {
        each.id: each
        for each in listed
        if each.notes.get("tenant_id") and (each.status not in TERMINAL or each.paid_count > 0)
    }
    async with transaction(run.engine) as db:
        held = await sync.find_held(db, named)
        tenants = await sync.find_tenants(db, {each.notes["tenant_id"] for each in named.values()})
    for each in named.values():
        tenant_id = each.notes["tenant_id"]
        if each.id in held or tenant_id not in tenants or run.tenant_id not in (None, tenant_id):
            continue
        if not await adopt(run, each, tenant_id) and each.status not in TERMINAL:
            orphans.setdefault(tenant_id, {})[each.id] = each


async def adopt(run: Run, found: ProviderSubscription, tenant_id: str) -> bool:
    """Whether it is a purchase of ours whose answer was lost; one that a customer has used is applied."""
    async with transaction(run.engine) as db:
        intent = await purchases.find_intent(db, found.notes.get("intent_id", ""))
    if intent is None or not was_begun_by(intent, found):
        return False
    if found.status == "created":
        return True  # nobody can be charged for it, and the repeat of the call finds it
    await run.apply("subscription.fetched", tenant_id, subscription=found)
    if run.dry_run:
        return True
    async with transaction(run.engine) as db:
        known = await subscription_store.find_known(db, found.id)
        if known is not None:  # its charges, too, came before we knew it
            await run.owe_fetch_in(db, known)
    return True


async def _recheck(run: Run, orphans: Orphans) -> None:
    """Orphans of earlier runs that still live: the lists are not walked from the beginning again."""
    tenants = None if run.tenant_id is None else [run.tenant_id]
    async with transaction(run.engine) as db:
        standing = await audit.list_open(db, checks={ORPHANS}, tenants=tenants)
        earlier = {
            (finding.tenant_id or "", str(each))
            for finding in standing
            for each in finding.observed.get("razorpaySubscriptionIds", [])
        }
        held = await sync.find_held(db, {subscription_id for _, subscription_id in earlier})
    for tenant_id, subscription_id in sorted(earlier):
        if subscription_id in held or subscription_id in orphans.get(tenant_id, {}):
            continue
        try:
            found = await run.ask(lambda of=subscription_id: run.razorpay.fetch_subscription(of))  # type: ignore[misc]
        except ProviderRefused:
            continue
        # Without an answer it stays an orphan, of which we know no more than its name.
        found = found or ProviderSubscription(subscription_id)
        if found.status not in TERMINAL:
            orphans.setdefault(tenant_id, {})[subscription_id] = found


async def _record(run: Run, orphans: Orphans) -> None:
    """Open a finding for each tenant with orphans, and close those that have none any more."""
    run.orphans += sum(len(of_tenant) for of_tenant in orphans.values())
    if run.dry_run:
        for tenant_id, of_tenant in sorted(orphans.items()):
            run.tell(_notice(run, tenant_id, of_tenant, "dry_run", None))
        return
    tenants = None if run.tenant_id is None else [run.tenant_id]
    async with transaction(run.engine) as db:
        for tenant_id, of_tenant in sorted(orphans.items()):
            await ops.open_finding(
                db,
                room=audit.ROOM,
                check_type=ORPHANS,
                tenant_id=tenant_id,
                severity=_severity(of_tenant),
                observed=_observed(run, tenant_id, of_tenant),
            )
        for finding in await audit.list_open(db, checks={ORPHANS}, tenants=tenants):
            of_tenant = orphans.get(finding.tenant_id or "", {})
            if of_tenant:
                since = finding.created_at
                run.tell(_notice(run, finding.tenant_id or "", of_tenant, finding.id, since))
            else:
                await ops.resolve_finding(
                    db,
                    room=audit.ROOM,
                    check_type=ORPHANS,
                    tenant_id=finding.tenant_id,
                    resolved_by=AUDITOR,
                )


def _severity(of_tenant: dict[str, ProviderSubscription]) -> Literal["warning", "critical"]:
    return "critical" if any(is_charging(each) for each in of_tenant.values()) else "warning"


def _observed(run: Run, tenant_id: str, of_tenant: dict[str, ProviderSubscription]) -> dict[str, Any]:
    ids = sorted(of_tenant)[:NAMED_MAX]
    commands = Commands(tenant_id, run.clock())
    return {
        "razorpaySubscriptionIds": ids,
        "statuses": [of_tenant[each].status for each in ids],
        "nextCommand": commands.cancel_orphan(ids[0]),
    }


def _notice(
    run: Run,
    tenant_id: str,
    of_tenant: dict[str, ProviderSubscription],
    finding_id: str,
    since: datetime | None,
) -> Notice:
    observed = _observed(run, tenant_id, of_tenant)
    return Notice(
        f"subscriptions.{ORPHANS}:{finding_id}",
        _severity(of_tenant),
        "The provider has a subscription that names a tenant of ours and that we did not begin",
        tenant_id,
        {
            "finding_id": finding_id,
            "subscription_ids": ", ".join(observed["razorpaySubscriptionIds"]),
            "statuses": ", ".join(observed["statuses"]),
            "next_command": observed["nextCommand"],
        },
        since,
    )


async def _save_place(run: Run, place: datetime) -> None:
    if run.dry_run or run.tenant_id is not None:
        return
    async with transaction(run.engine) as db:
        await audit.save_place(db, WALK, place.isoformat())
