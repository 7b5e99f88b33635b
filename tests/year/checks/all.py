"""Every check of the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.year.checks import books, changes, money, standing
from tests.year.evidence import Evidence

CHECKS: dict[str, Callable[[Evidence], Iterable[str]]] = {
    "money": money.payments,
    "grants": money.grants,
    "given back": money.given_back,
    "changes": changes.prorations,
    "revocations": money.revocations,
    "acknowledged": money.acknowledged,
    "documents": money.documents,
    "entitlements": standing.entitlements,
    "one live": standing.one_live_subscription,
    "provider": standing.same_at_the_provider,
    "diagnoses": standing.diagnoses,
    "proofs": books.ledger_proofs,
    "findings": books.findings,
    "tasks": books.tasks,
    "jobs": books.jobs,
}


def wrong_with(evidence: Evidence) -> list[str]:
    """What is wrong, check by check; nothing is the only good answer."""
    return [f"{name}: {each}" for name, check in CHECKS.items() for each in check(evidence)]
