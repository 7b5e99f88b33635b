"""What is for sale, and how two states of it differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from services.subscriptions.rules import catalog_file
from services.subscriptions.rules.amounts import gst_on, with_gst, yearly_discount_pct

Cycle = Literal["monthly", "yearly"]
Cadence = Literal["per_cycle", "monthly"]
CYCLES: tuple[Cycle, ...] = ("monthly", "yearly")
FREE = "free"
MONTHS = {"monthly": 1, "yearly": 12}


@dataclass(frozen=True)
class LimitDefinition:
    """A thing that is counted: `posts` of the service `blog`."""

    service: str
    key: str
    name: str
    unit: str
    kind: str = "hard"
    grace_seconds: int = 0

    @property
    def path(self) -> str:
        """`blog.posts`."""
        return f"{self.service}.{self.key}"


@dataclass(frozen=True)
class Plan:
    """A plan; prices are before tax. A limit of None is no limit."""

    code: str
    name: str
    position: int
    price_monthly_paise: int
    price_yearly_paise: int
    base_credits: int
    credit_cadence: Cadence
    trial_days: int
    trial_credits: int
    limits: Mapping[str, int | None]

    def price_paise(self, cycle: Cycle) -> int:
        """The price of a cycle before tax."""
        return self.price_monthly_paise if cycle == "monthly" else self.price_yearly_paise

    def tax_paise(self, cycle: Cycle) -> int:
        """GST on the price of a cycle."""
        return gst_on(self.price_paise(cycle))

    def total_paise(self, cycle: Cycle) -> int:
        """What a cycle costs the customer."""
        return with_gst(self.price_paise(cycle))

    def credits(self, cycle: Cycle) -> int:
        """Credits of a paid cycle: a year brings its twelve months, because the provider charges once a year."""
        return self.base_credits * MONTHS[cycle]

    @property
    def yearly_discount_pct(self) -> int:
        """See `amounts.yearly_discount_pct`."""
        return yearly_discount_pct(self.price_monthly_paise, self.price_yearly_paise)

    @property
    def is_paid(self) -> bool:
        """False for the free plan."""
        return self.price_monthly_paise > 0


@dataclass(frozen=True)
class CreditPack:
    """Permanent credits for money; the price includes tax."""

    code: str
    name: str
    position: int
    credits: int
    total_paise: int


@dataclass(frozen=True)
class Addon:
    """More of a limit, for credits per period."""

    code: str
    name: str
    limit: str
    quantity: int
    credits: int
    period_days: int


@dataclass(frozen=True)
class CreditCost:
    """What an action costs."""

    action: str
    credits: int
    description: str


@dataclass(frozen=True)
class Catalog:
    """Everything for sale, by code."""

    services: Mapping[str, str]
    limits: Mapping[str, LimitDefinition]
    plans: Mapping[str, Plan]
    credit_packs: Mapping[str, CreditPack]
    addons: Mapping[str, Addon]
    credit_costs: Mapping[str, CreditCost]

    def as_json(self) -> dict[str, Any]:
        """The whole catalogue as plain values."""
        return asdict(self)

    @cached_property
    def version(self) -> str:
        """Names this content: equal catalogues have equal versions."""
        canonical = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class CatalogChange:
    """One line of a difference; an empty side does not exist."""

    kind: str
    code: str
    change: Literal["add", "change", "retire"]
    before: str
    after: str


def parse(document: Mapping[str, Any]) -> Catalog:
    """The catalogue that a YAML document describes; ValueError names everything that is wrong with it."""
    file = catalog_file.read(document)
    catalog = Catalog(
        services={code: service.name for code, service in file.services.items()},
        limits={
            f"{service}.{key}": LimitDefinition(
                service, key, limit.name, limit.unit, limit.kind, limit.grace_seconds
            )
            for service, described in file.services.items()
            for key, limit in described.limits.items()
        },
        plans={code: _plan(code, position, plan) for position, (code, plan) in enumerate(file.plans.items())},
        credit_packs={
            code: CreditPack(code, pack.name, position, pack.credits, pack.total_rupees * 100)
            for position, (code, pack) in enumerate(file.credit_packs.items())
        },
        addons={
            code: Addon(code, addon.name, addon.limit, addon.quantity, addon.credits, addon.period_days)
            for code, addon in file.addons.items()
        },
        credit_costs={
            action: CreditCost(action, cost.credits, cost.description)
            for action, cost in file.credit_costs.items()
        },
    )
    wrong = list(_mistakes(catalog))
    if wrong:
        raise ValueError("catalog.yaml: " + "; ".join(wrong))
    return catalog


def differences(before: Catalog, after: Catalog) -> list[CatalogChange]:
    """What must change so that the first becomes the second, in a stable order."""
    old, new = dict(_lines(before)), dict(_lines(after))
    changes = []
    for kind, code in sorted(old.keys() | new.keys()):
        was, becomes = old.get((kind, code), ""), new.get((kind, code), "")
        if was != becomes:
            change: Literal["add", "change", "retire"] = (
                "add" if not was else "retire" if not becomes else "change"
            )
            changes.append(CatalogChange(kind, code, change, was, becomes))
    return changes


def _plan(code: str, position: int, plan: catalog_file.PlanEntry) -> Plan:
    return Plan(
        code=code,
        name=plan.name,
        position=position,
        price_monthly_paise=plan.monthly_rupees * 100,
        price_yearly_paise=plan.yearly_rupees * 100,
        base_credits=plan.base_credits,
        credit_cadence=plan.credit_cadence,
        trial_days=plan.trial_days,
        trial_credits=plan.trial_credits,
        limits={path: None if value == "unlimited" else value for path, value in plan.limits.items()},
    )


def _mistakes(catalog: Catalog) -> Iterator[str]:
    if FREE not in catalog.plans or catalog.plans[FREE].is_paid:
        yield "a plan `free` that costs nothing is needed"
    for plan in catalog.plans.values():
        if (plan.price_monthly_paise > 0) != (plan.price_yearly_paise > 0):
            yield f"plans.{plan.code} has a price in one cycle only"
        for path in plan.limits.keys() ^ catalog.limits.keys():
            yield f"plans.{plan.code}.limits.{path} is " + (
                "unknown" if path in plan.limits else "not said: write 0 for none or `unlimited`"
            )
    for addon in catalog.addons.values():
        if addon.limit not in catalog.limits:
            yield f"addons.{addon.code}.limit names no limit"


def _lines(catalog: Catalog) -> Iterator[tuple[tuple[str, str], str]]:
    for code, name in catalog.services.items():
        yield ("service", code), name
    for path, limit in catalog.limits.items():
        yield ("limit", path), _line(limit, without=("service", "key"))
    for code, plan in catalog.plans.items():
        yield ("plan", code), _line(plan, without=("code", "limits"))
        for path, value in plan.limits.items():
            yield ("plan_limit", f"{code}/{path}"), "unlimited" if value is None else str(value)
    for kind, items in (("credit_pack", catalog.credit_packs), ("addon", catalog.addons)):
        for code, item in items.items():
            yield (kind, code), _line(item, without=("code",))
    for action, cost in catalog.credit_costs.items():
        yield ("credit_cost", action), _line(cost, without=("action",))


def _line(item: Any, *, without: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={value}" for name, value in asdict(item).items() if name not in without)
