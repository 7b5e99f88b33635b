"""Charging one period of an add-on: asked of the ledger outside any transaction, recorded in one."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.subscriptions.actions import standing
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.errors import (
    AccountFrozen,
    Conflict,
    IdempotencyKeyReused,
    InsufficientCredits,
    LedgerUnavailable,
)
from services.subscriptions.rules import addons as rules
from services.subscriptions.rules.addons import Charge, Shown, TenantAddon
from services.subscriptions.store import addons as store
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import keys, notices
from services.subscriptions.store import subscriptions as subscription_store
from shared import logs
from shared.clock import Clock
from shared.database import transaction
from shared.errors import Aborted, BillingError, Internal, ResourceExhausted
from shared.ops import store as ops

BUY = "BuyAddon"
RESUME = "ResumeAddon"
NOTICE = "addon_paused"

_AUDITED = ("addon_id", "units", "status", "period", "next_renewal", "paused_at")
_log = logs.get_logger()


@dataclass(frozen=True)
class Outcome:
    """What the ledger said."""

    kind: Literal["paid", "unaffordable", "turned_down"]
    refusal: BillingError | None = None


@dataclass(frozen=True)
class Settlement:
    """An outcome, the row as it stands after it, and whether it was this worker who recorded it."""

    outcome: Outcome
    row: TenantAddon
    recorded: bool


@dataclass(frozen=True)
class Answer:
    """What a caller learns of a purchase or a resumption."""

    addon: Shown
    credits: int
    replayed: bool


async def carry_out(engine: AsyncEngine, ledger: Ledger, charge: Charge, clock: Clock) -> Settlement:
    """Charge the period and record what came of it; LedgerUnavailable leaves the charge to whoever comes next."""
    outcome = await _ask(ledger, charge)
    try:
        async with transaction(engine) as db:
            return await _settle(db, charge, outcome, clock())
    except (BillingError, DBAPIError) as error:
        # Whatever kept us from the record, the ledger may have charged: no definite refusal may be told.
        _log.exception("addon_charge_not_recorded", tenant_id=charge.tenant_id, charge=charge.idempotency_key)
        raise LedgerUnavailable(
            "what the ledger said of the add-on could not be recorded: ask again with the same key"
        ) from error


async def _ask(ledger: Ledger, charge: Charge) -> Outcome:
    try:
        await ledger.debit(
            tenant_id=charge.tenant_id,
            idempotency_key=charge.idempotency_key,
            credits=charge.credits,
            reason=f"addon.{charge.addon_id}",
            reference_id=charge.period_ref,
            description=f"Add-on {charge.addon_id}, period {charge.period}",
        )
    except BillingError as error:
        if error.reason == InsufficientCredits.reason:
            return Outcome("unaffordable", _insufficient(error.message, error.metadata))
        if not error.definite or isinstance(error, ResourceExhausted | Aborted):
            raise LedgerUnavailable(
                "the ledger did not say whether it charged the add-on: ask again with the same key"
            ) from error
        _log.warning("addon_charge_refused", tenant_id=charge.tenant_id, reason=error.reason)
        return Outcome("turned_down", _turned_down(error, charge))
    return Outcome("paid")


def _insufficient(message: str, metadata: dict[str, Any]) -> InsufficientCredits:
    told = {name: metadata[name] for name in ("available", "requested", "shortfall") if name in metadata}
    return InsufficientCredits(message, **told)


def _turned_down(error: BillingError, charge: Charge) -> BillingError:
    if error.reason == AccountFrozen.reason:
        return AccountFrozen(error.message, tenant_id=charge.tenant_id)
    if error.reason == "UNKNOWN_TENANT":
        # The tenant is known here, so the first push of its limits, which opens the account, is still owed.
        return LedgerUnavailable("the ledger has not opened the account yet: ask again with the same key")
    return Internal("the ledger refused to charge the add-on")


async def _settle(db: AsyncConnection, charge: Charge, outcome: Outcome, now: datetime) -> Settlement:
    subscription = await subscription_store.lock_subscription(db, charge.tenant_id)
    row = await store.find_addon(db, charge.tenant_id, charge.tenant_addon_id)
    if row is None:
        raise Internal(f"add-on {charge.tenant_addon_id} is gone")
    if row.charge != charge:
        return Settlement(outcome, row, recorded=False)
    addon = (await catalog_store.read_catalog(db, with_retired=True)).addons[row.addon_id]
    match outcome.kind:
        case "paid":
            after = rules.paid(row, addon, now)
        case "unaffordable":
            after = rules.unaffordable(row, now)
        case "turned_down":
            after = rules.turned_down(row)
    await store.save_addon(db, after)
    if after.status == "paused" and row.status != "paused":
        await _owe_notice(db, charge, outcome, now)
    # A retry that was turned down again leaves the row as it was.
    if after.status != row.status or after.period != row.period:
        await record_audit(db, row, after, _action(row, after), by_caller=row.charge_key is not None)
    await standing.rebuild(db, subscription, now)
    if row.charge_key is not None and outcome.kind != "turned_down":
        answer: dict[str, Any] = {"addon": rules.show(after, addon).as_json(), "credits": charge.credits}
        if outcome.refusal is not None:
            answer = {"refusal": {"message": outcome.refusal.message, "metadata": outcome.refusal.metadata}}
        await _keep_answer(db, row, row.charge_key, answer)
    return Settlement(outcome, after, recorded=True)


def _action(before: TenantAddon, after: TenantAddon) -> str:
    if after.period > before.period:
        if not before.was_bought:
            return "addon.bought"
        return "addon.renewed" if before.status == "active" else "addon.resumed"
    return "addon.paused" if after.status == "paused" else "addon.refused"


async def _owe_notice(db: AsyncConnection, charge: Charge, outcome: Outcome, now: datetime) -> None:
    told = outcome.refusal.metadata if outcome.refusal else {}
    await notices.insert_notice(
        db,
        tenant_id=charge.tenant_id,
        kind=NOTICE,
        cycle_ref=charge.period_ref,
        payload={
            "tenantAddonId": charge.tenant_addon_id,
            "addonCode": charge.addon_id,
            "credits": charge.credits,
            "available": int(told.get("available", 0)),
        },
        now=now,
    )


async def record_audit(
    db: AsyncConnection,
    before: TenantAddon,
    after: TenantAddon,
    action: str,
    *,
    by_caller: bool,
    reason: str = "",
) -> None:
    """One line of audit with the fields that changed."""
    was, became = asdict(before), asdict(after)
    changed = [name for name in _AUDITED if was[name] != became[name]]
    await ops.record_audit(
        db,
        room=standing.ROOM,
        action=action,
        actor_type="service" if by_caller else "system",
        actor_id="product" if by_caller else "renew_addons",
        tenant_id=after.tenant_id,
        resource_type="addon",
        resource_id=after.id,
        before={name: standing.plain(was[name]) for name in changed},
        after={name: standing.plain(became[name]) for name in changed},
        reason=reason or action,
        request_id=logs.request_id.get(),
    )


def method_and_request(row: TenantAddon) -> tuple[str, dict[str, Any]]:
    """The call that a charge of this row answers."""
    if not row.was_bought:
        return BUY, {"addon_code": row.addon_id, "units": row.units}
    return RESUME, {"tenant_addon_id": row.id}


async def _keep_answer(db: AsyncConnection, row: TenantAddon, key: str, answer: dict[str, Any]) -> None:
    method, request = method_and_request(row)
    try:
        known = await keys.find_answer(db, tenant_id=row.tenant_id, method=method, key=key, request=request)
    except IdempotencyKeyReused:
        return  # The record of a charge must not fail over a caller's mistake.
    if known is None:
        await keys.insert_answer(
            db, tenant_id=row.tenant_id, method=method, key=key, request=request, answer=answer
        )


async def answer_of(
    engine: AsyncEngine, settlement: Settlement, begun: TenantAddon, key: str, *, replayed: bool
) -> Answer:
    """The first answer under the caller's key, whoever recorded the charge that it began."""
    method, request = method_and_request(begun)
    async with transaction(engine) as db:
        stored = await keys.find_answer(
            db, tenant_id=begun.tenant_id, method=method, key=key, request=request
        )
    if stored is not None:
        return read_answer(stored, replayed=replayed)
    raise settlement.outcome.refusal or Conflict("another call was at work: ask again with the same key")


def read_answer(stored: dict[str, Any], *, replayed: bool) -> Answer:
    """A first answer, the refusal included."""
    if refusal := stored.get("refusal"):
        raise _insufficient(refusal["message"], refusal["metadata"])
    return Answer(rules.shown_from_json(stored["addon"]), stored["credits"], replayed)
