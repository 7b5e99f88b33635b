"""Where a rotation of the provider's webhook secret stands; docs/runbooks.md, Secret rotation, numbers the steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, Verdict

# The provider repeats a delivery for 24 hours as it was signed, and replays for seven days what nobody acknowledged.
STANDING = """
SELECT provider, account_id, mode,
       COUNT(*) FILTER (WHERE signed_with = 'current' AND received_at > NOW() - INTERVAL '1 day') AS by_current_today,
       MAX(received_at) FILTER (WHERE signed_with = 'current') AS last_by_current,
       COUNT(*) FILTER (WHERE signed_with = 'previous' AND received_at > NOW() - INTERVAL '1 day') AS by_previous_today,
       MIN(received_at) FILTER (WHERE signed_with = 'previous') AS first_by_previous,
       MAX(received_at) FILTER (WHERE signed_with = 'previous') AS last_by_previous,
       MAX(received_at) FILTER (WHERE signed_with = 'previous') + INTERVAL '8 days' AS may_go_at,
       MAX(received_at) FILTER (WHERE signed_with = 'previous') > NOW() - INTERVAL '8 days' AS under_way,
       MAX(received_at) FILTER (WHERE signed_with = 'current')
           > MIN(received_at) FILTER (WHERE signed_with = 'previous') AS both
FROM webhook_events
WHERE received_at > NOW() - INTERVAL '30 days'
GROUP BY provider, account_id, mode
ORDER BY provider, account_id, mode;
"""
REFUSED = """
SELECT endpoint || COALESCE('/' || path, '') AS place, remote_ip, user_agent, COUNT(*) AS n,
       MIN(created_at) AS oldest, MAX(created_at) AS newest
FROM billing_signature_failures
WHERE endpoint = 'webhook'
  AND created_at > NOW() - INTERVAL '1 day'
GROUP BY endpoint, path, remote_ip, user_agent
ORDER BY n DESC
LIMIT 10;
"""
PAGE = "docs/runbooks.md, Secret rotation"
# Each caller shows one key, and each room takes one: the old one is refused from the restart on.
OTHERS = (
    "other secrets take one value each, and calls between a restart and the next are refused: GATEWAY_SECRET: all rooms,"
    " then every product; ROOM_SECRET: all rooms together, webhooks last (the provider repeats what it could not"
    " deliver); OPERATOR_SECRET: all rooms, then the operators' shells. Callers repeat with the same keys, so nothing"
    " is done twice"
)


async def diagnose(desk: Desk) -> Diagnosis:
    """Which secret signs what arrives at each address, and which step comes next."""
    standing, refused = await desk.rows(STANDING), await desk.rows(REFUSED)
    facts = [
        Fact("deliveries by the secret that signed them", standing, STANDING),
        Fact("refused since a day", refused, REFUSED),
    ]
    told = [_stands(row) for row in standing]
    steps = [step for _, _, steps in told for step in steps]
    refusals = sum(row["n"] for row in refused if (row["user_agent"] or "").startswith("Razorpay-Webhook"))
    if refusals:
        steps.insert(
            0,
            f"{refusals} of the provider's were refused since a day, with a secret not known here: billctl fix signatures",
        )
    if not standing:
        summary = "no delivery for 30 days, so nothing says which secret signs"
        return Diagnosis("rotation", Verdict.OK, summary, facts, next_steps=[*steps, _begin(), OTHERS])
    summary = "; ".join(what for _, what, _ in told)
    if any(under_way for under_way, _, _ in told):
        return Diagnosis("rotation", Verdict.WARNING, summary, facts, next_steps=steps)
    if refusals:
        return Diagnosis("rotation", Verdict.CRITICAL, summary, facts, next_steps=steps)
    return Diagnosis("rotation", Verdict.OK, summary, facts, next_steps=[*steps, _begin(), OTHERS])


def _stands(row: Mapping[str, Any]) -> tuple[bool, str, Sequence[str]]:
    """(whether a rotation is under way, how far it is, what comes next) for one address."""
    place = f"{row['provider']} {row['account_id']} {row['mode']}"
    if row["last_by_previous"] is None:
        return False, f"{place}: one secret signs everything", ()
    last = f"{row['last_by_previous']:%Y-%m-%dT%H:%M:%SZ}"
    if not row["both"]:
        return (
            True,
            f"{place}: everything is signed with the previous secret",
            (
                f"{place}: step 2, now: give the provider the new secret ({PAGE})",
                f"{place}: if that was done, the dashboard and the environment have different ones: billctl fix signatures",
            ),
        )
    if row["by_previous_today"]:
        return (
            True,
            f"{place}: both secrets sign, the previous one last at {last}",
            (
                f"{place}: step 3, watch: the previous one signs only what is repeated, until a day has none of it."
                f" It may go at {_may_go(row)} at the earliest",
            ),
        )
    if row["under_way"]:
        return (
            True,
            f"{place}: the previous secret is silent since {last}",
            (
                f"{place}: step 4 comes at {_may_go(row)}: until then the provider may replay what it signed before. After a"
                " leak weigh that, for whoever has the old secret can sign",
            ),
        )
    # Whether it was taken out of the environment nobody sees from here.
    return (
        False,
        f"{place}: done, the previous secret is silent since {last}",
        (
            f"{place}: step 4, if it was not done: unset RAZORPAY_WEBHOOK_SECRET_PREVIOUS (or the second of its secrets) and"
            " restart the ingress",
        ),
    )


def _may_go(row: Mapping[str, Any]) -> str:
    return f"{row['may_go_at']:%Y-%m-%dT%H:%MZ}"


def _begin() -> str:
    return f"to begin one: step 1 of {PAGE}: the new secret in front, the old one as the previous, restart the ingress"
