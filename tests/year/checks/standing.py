"""Where tenants stand: limits, plans, and what lives at the provider."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.year.checks.daily import LIVE
from tests.year.evidence import Evidence, Row

ENTITLING = ("trialing", "active", "past_due")
COUNTING = ("active", "canceling")


def entitlements(evidence: Evidence) -> Iterator[str]:
    """Every tenant's limits in the ledger are its plan's, plus add-ons, replaced by overrides that hold."""
    accounts = {row["tenant_id"]: row for row in evidence.tables["ledger_accounts"]}
    services: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in evidence.tables["ledger_services"]:
        services[row["tenant_id"]][row["service_code"]] = row
    for standing in evidence.tables["standings"]:
        tenant, plan = standing["tenant_id"], entitling_plan(standing)
        account = accounts.get(tenant)
        if account is None:
            yield f"{tenant}: the ledger has no account"
            continue
        if (account["plan_code"], account["entitlements_version"]) != (
            plan,
            standing["entitlements_version"],
        ):
            yield (
                f"{tenant}: {plan} version {standing['entitlements_version']} here,"
                f" {account['plan_code']} version {account['entitlements_version']} in the ledger"
            )
        expected, held = limits_of(evidence, tenant, plan), _held(services[tenant])
        for path in sorted(expected.keys() | held.keys()):
            if expected.get(path, "none") != held.get(path, "none"):
                yield f"{tenant} on {plan}: {path} must be {_word(expected, path)}, the ledger has {_word(held, path)}"
    for tenant in accounts.keys() - {row["tenant_id"] for row in evidence.tables["standings"]}:
        yield f"{tenant}: the ledger has an account of nobody"


def entitling_plan(standing: Row) -> str:
    """The plan whose limits hold."""
    return str(standing["plan_id"]) if standing["status"] in ENTITLING else "free"


def limits_of(evidence: Evidence, tenant: str, plan: str) -> dict[str, int | None]:
    """By `service.key`; None is no limit."""
    limits: dict[str, int | None] = {
        path: None if value == "unlimited" else int(value)
        for path, value in evidence.catalogue["plans"][plan]["limits"].items()
    }
    for addon in evidence.tables["addons"]:
        if addon["tenant_id"] == tenant and addon["status"] in COUNTING:
            sold = evidence.catalogue["addons"][addon["addon_id"]]
            before = limits[sold["limit"]]
            limits[sold["limit"]] = None if before is None else before + sold["quantity"] * addon["units"]
    for override in evidence.tables["overrides"]:
        holds = override["expires_at"] is None or override["expires_at"] > evidence.now
        if override["tenant_id"] == tenant and override["removed_at"] is None and holds:
            limits[f"{override['service_id']}.{override['limit_key']}"] = override["value"]
    return limits


def _held(services: dict[str, Row]) -> dict[str, int | None]:
    held: dict[str, int | None] = {}
    for code, row in services.items():
        if row["enabled"]:
            for key, limit in row["limits"].items():
                held[f"{code}.{key}"] = limit["limit"]
    return held


def _word(limits: dict[str, int | None], path: str) -> str:
    if path not in limits:
        return "no limit of that name"
    return "unlimited" if limits[path] is None else str(limits[path])


def one_live_subscription(evidence: Evidence) -> Iterator[str]:
    """The provider never holds two subscriptions of one tenant that take money."""
    live: defaultdict[str, list[str]] = defaultdict(list)
    for each in _ours_at_provider(evidence):
        if each["status"] in LIVE:
            live[each["notes"]["tenant_id"]].append(each["id"])
    for tenant, subscriptions in live.items():
        if len(subscriptions) > 1:
            yield f"{tenant}: {len(subscriptions)} live subscriptions at the provider: {', '.join(subscriptions)}"


def same_at_the_provider(evidence: Evidence) -> Iterator[str]:
    """Every subscription is known on both sides, with one status and one number of paid cycles; plans follow them."""
    known = {row["id"]: row for row in evidence.tables["known"]}
    theirs = {each["id"]: each for each in _ours_at_provider(evidence)}
    once = Counter(each["notes"]["intent_id"] for each in theirs.values())
    for intent, number in once.items():
        if number > 1:
            yield f"{intent}: {number} subscriptions at the provider for one checkout"
    for which in sorted(known.keys() | theirs.keys()):
        ours, other = known.get(which), theirs.get(which)
        if ours is None or other is None:
            yield f"{which}: known only {'at the provider' if ours is None else 'here'}"
        elif (ours["status"], ours["paid_count"]) != (other["status"], other["paid_count"]):
            yield (
                f"{which} of {ours['tenant_id']}: {ours['status']} after {ours['paid_count']} payments here,"
                f" {other['status']} after {other['paid_count']} at the provider"
            )
    yield from _plans_follow(evidence, theirs)


def _plans_follow(evidence: Evidence, theirs: dict[str, Row]) -> Iterator[str]:
    for standing in evidence.tables["standings"]:
        relied_on = standing["razorpay_subscription_id"]
        if relied_on is None:
            if standing["plan_id"] != "free":
                yield f"{standing['tenant_id']}: on {standing['plan_id']} without a subscription"
        elif relied_on not in theirs:
            yield f"{standing['tenant_id']}: relies on {relied_on}, which the provider does not have"
        elif theirs[relied_on]["notes"]["plan_code"] != standing["plan_id"]:
            sold = theirs[relied_on]["notes"]["plan_code"]
            yield f"{standing['tenant_id']}: on {standing['plan_id']}, its subscription is of {sold}"
    relied = {row["razorpay_subscription_id"] for row in evidence.tables["standings"]}
    for each in theirs.values():
        if each["status"] == "active" and each["id"] not in relied:
            yield f"{each['notes']['tenant_id']}: {each['id']} is active at the provider, and we do not rely on it"


def _ours_at_provider(evidence: Evidence) -> Iterator[Row]:
    for each in evidence.provider["subscriptions"].values():
        if isinstance(each["notes"], dict) and "tenant_id" in each["notes"]:
            yield each


def diagnoses(evidence: Evidence) -> Iterator[str]:
    """DiagnoseTenant, asked of each tenant, finds no difference."""
    for standing in evidence.tables["standings"]:
        said = evidence.diagnoses.get(standing["tenant_id"], ["nobody asked"])
        if said:
            yield f"{standing['tenant_id']}: {'; '.join(said)}"
