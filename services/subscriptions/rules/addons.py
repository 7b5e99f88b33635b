"""Add-ons: paid with credits, a period at a time.

`period` counts the periods that are paid. A charge is always for the next one and is written down, with its price,
before the ledger is asked, so whoever finds it asks under the same key; `attempt` rises with each refusal recorded.
One period is thus charged once, whatever is repeated, killed or done by two at once.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from services.subscriptions.rules.catalog import Addon, Plan

Due = Literal["charge", "end", "retry"]


@dataclass(frozen=True)
class Charge:
    """One attempt to charge one period."""

    tenant_id: str
    tenant_addon_id: str
    addon_id: str
    period: int
    attempt: int
    credits: int

    @property
    def idempotency_key(self) -> str:
        """One attempt is one debit."""
        return f"addon:{self.tenant_addon_id}:{self.period}:{self.attempt}"

    @property
    def period_ref(self) -> str:
        """The period, in the ledger and on notices."""
        return f"{self.tenant_addon_id}:{self.period}"


@dataclass(frozen=True)
class TenantAddon:
    """An add-on of a tenant: one row from its purchase on, through pauses and cancellations."""

    id: str
    tenant_id: str
    addon_id: str
    units: int
    status: str
    period: int
    attempt: int
    next_renewal: datetime | None
    idempotency_key: str | None
    paused_at: datetime | None
    charge_credits: int | None
    charge_key: str | None
    created_at: datetime

    @property
    def charge(self) -> Charge | None:
        """The charge whose outcome is not recorded yet."""
        if self.charge_credits is None:
            return None
        return Charge(
            self.tenant_id, self.id, self.addon_id, self.period + 1, self.attempt, self.charge_credits
        )

    @property
    def was_bought(self) -> bool:
        """False for a purchase that was refused or is under way."""
        return self.period > 0

    @property
    def counts(self) -> bool:
        """Whether it raises its limit."""
        return self.status in ("active", "canceling")


def price(addon: Addon, units: int) -> int:
    """Credits of a period for so many units."""
    return addon.credits * units


def has_effect(addon: Addon, plan: Plan) -> bool:
    """Whether the plan bounds what the add-on raises."""
    return plan.limits.get(addon.limit) is not None


def begin(row: TenantAddon, credits: int, key: str | None) -> TenantAddon:
    """A charge for the next period; what has ended is pending, so that nobody buys a second one meanwhile."""
    statuses = {"canceled": "pending", "canceling": "active"}
    return replace(row, status=statuses.get(row.status, row.status), charge_credits=credits, charge_key=key)


def paid(row: TenantAddon, addon: Addon, now: datetime) -> TenantAddon:
    """The next period is paid: one that renews follows the last, unless it would be over already."""
    length = timedelta(days=addon.period_days)
    end = now + length
    if row.status == "active" and row.next_renewal is not None and row.next_renewal + length > now:
        end = row.next_renewal + length
    return replace(
        _settled(row), status="active", period=row.period + 1, attempt=1, next_renewal=end, paused_at=None
    )


def unaffordable(row: TenantAddon, now: datetime) -> TenantAddon:
    """Credits do not cover the next period: a purchase is off, everything else waits for credits."""
    after = replace(_settled(row), attempt=row.attempt + 1, next_renewal=None)
    if row.status == "pending":
        return replace(after, status="canceled")
    return replace(after, status="paused", paused_at=row.paused_at or now)


def turned_down(row: TenantAddon) -> TenantAddon:
    """The ledger would not for another reason and remembers nothing: what ran runs on, a purchase is off."""
    return replace(_settled(row), status="canceled" if row.status == "pending" else row.status)


def cancel(row: TenantAddon) -> TenantAddon:
    """Ends with its period, or at once where none is paid."""
    if row.status == "active":
        return replace(row, status="canceling")
    return ended(row) if row.status == "paused" else row


def ended(row: TenantAddon) -> TenantAddon:
    """Its period is over."""
    return replace(row, status="canceled", next_renewal=None, paused_at=None)


def can_resume_free(row: TenantAddon, now: datetime) -> bool:
    """Whether the running period is paid."""
    return row.status == "active" or (
        row.status == "canceling" and row.next_renewal is not None and row.next_renewal > now
    )


def resume_free(row: TenantAddon) -> TenantAddon:
    """As if it had not been cancelled."""
    return replace(row, status="active")


def due(row: TenantAddon, now: datetime) -> Due | None:
    """What time asks of it."""
    if row.charge is not None:
        return "charge"
    if row.status == "paused":
        return "retry"
    if row.counts and row.next_renewal is not None and row.next_renewal <= now:
        return "charge" if row.status == "active" else "end"
    return None


def _settled(row: TenantAddon) -> TenantAddon:
    return replace(row, charge_credits=None, charge_key=None)


@dataclass(frozen=True)
class Shown:
    """An add-on as its tenant sees it."""

    id: str
    addon_id: str
    units: int
    status: str
    next_renewal: datetime | None
    credits_per_period: int
    created_at: datetime

    def as_json(self) -> dict[str, Any]:
        """The shape kept as a first answer."""
        return asdict(self) | {
            "next_renewal": self.next_renewal.isoformat() if self.next_renewal else None,
            "created_at": self.created_at.isoformat(),
        }


def show(row: TenantAddon, addon: Addon) -> Shown:
    """The row with the price of its next period."""
    return Shown(
        row.id,
        row.addon_id,
        row.units,
        row.status,
        row.next_renewal,
        price(addon, row.units),
        row.created_at,
    )


def shown_from_json(stored: Mapping[str, Any]) -> Shown:
    """The inverse of `Shown.as_json`."""
    renewal = stored["next_renewal"]
    return Shown(
        **{
            **stored,
            "next_renewal": datetime.fromisoformat(renewal) if renewal else None,
            "created_at": datetime.fromisoformat(stored["created_at"]),
        }
    )
