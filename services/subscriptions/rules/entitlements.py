"""What a tenant may use: the plan's limits, raised by add-ons, replaced by overrides."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.subscriptions.rules.catalog import Addon, Catalog


@dataclass(frozen=True)
class Limit:
    """How much of one thing; None is no limit."""

    key: str
    value: int | None
    kind: str
    grace_seconds: int
    addon: str


@dataclass(frozen=True)
class ServiceEntitlement:
    """What a tenant may use of one service."""

    service: str
    enabled: bool
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class ActiveAddon:
    """An add-on that counts."""

    code: str
    units: int


@dataclass(frozen=True)
class Override:
    """A limit set for one tenant."""

    service: str
    key: str
    value: int | None
    expires_at: datetime | None


def build(
    catalog: Catalog,
    plan_id: str,
    addons: Iterable[ActiveAddon],
    overrides: Iterable[Override],
    now: datetime,
) -> tuple[ServiceEntitlement, ...]:
    """Every service of the catalogue, in order; one that the plan does not name is disabled."""
    plan = catalog.plans[plan_id]
    extra = _extra(catalog.addons, addons)
    replaced = {
        f"{o.service}.{o.key}": o.value for o in overrides if o.expires_at is None or o.expires_at > now
    }
    lifted_by = {addon.limit: addon.code for addon in sorted(catalog.addons.values(), key=lambda a: a.code)}
    services = []
    for service in sorted(catalog.services):
        limits = []
        for path, definition in sorted(catalog.limits.items()):
            if definition.service != service or (path not in plan.limits and path not in replaced):
                continue
            value = plan.limits.get(path, 0)
            if value is not None:
                value += extra.get(path, 0)
            limits.append(
                Limit(
                    definition.key,
                    replaced.get(path, value),
                    definition.kind,
                    definition.grace_seconds,
                    lifted_by.get(path, ""),
                )
            )
        services.append(ServiceEntitlement(service, bool(limits), tuple(limits)))
    return tuple(services)


def as_json(services: Iterable[ServiceEntitlement]) -> list[dict[str, Any]]:
    """The shape stored and carried by tasks."""
    return [
        {
            "serviceCode": service.service,
            "enabled": service.enabled,
            "limits": [
                {
                    "key": limit.key,
                    "value": limit.value,
                    "kind": limit.kind,
                    "graceSeconds": limit.grace_seconds,
                    "addon": limit.addon,
                }
                for limit in service.limits
            ],
        }
        for service in services
    ]


def from_json(stored: Iterable[Mapping[str, Any]]) -> tuple[ServiceEntitlement, ...]:
    """The inverse of `as_json`."""
    return tuple(
        ServiceEntitlement(
            service["serviceCode"],
            service["enabled"],
            tuple(
                Limit(limit["key"], limit["value"], limit["kind"], limit["graceSeconds"], limit["addon"])
                for limit in service["limits"]
            ),
        )
        for service in stored
    )


def _extra(catalog: Mapping[str, Addon], addons: Iterable[ActiveAddon]) -> dict[str, int]:
    extra: dict[str, int] = {}
    for active in addons:
        addon = catalog[active.code]
        extra[addon.limit] = extra.get(addon.limit, 0) + addon.quantity * active.units
    return extra
