"""Runbook 3: signatures fail. Nothing here is mended by a program; it says who it is and what a person does."""

from collections.abc import Mapping, Sequence
from typing import Any

from billctl.desk import Desk
from billctl.diagnosis import Diagnosis, Fact, Verdict

FAILURES = """
SELECT endpoint, path, tenant_id, remote_ip, user_agent, COUNT(*) AS n, MIN(created_at) AS oldest,
       MAX(created_at) AS newest
FROM billing_signature_failures
WHERE created_at > NOW() - INTERVAL '1 hour'
GROUP BY endpoint, path, tenant_id, remote_ip, user_agent
ORDER BY n DESC
LIMIT 20;
"""
PLACES = """
SELECT endpoint || COALESCE('/' || path, '') AS place, COUNT(*) AS n, COUNT(DISTINCT remote_ip) AS addresses,
       COUNT(DISTINCT tenant_id) AS tenants, MIN(tenant_id) AS one_tenant, MIN(remote_ip) AS one_address,
       COUNT(*) FILTER (WHERE user_agent LIKE 'Razorpay-Webhook%') AS as_the_provider,
       MAX(created_at) AS newest
FROM billing_signature_failures
WHERE created_at > NOW() - INTERVAL '1 hour'
GROUP BY endpoint, path
ORDER BY n DESC;
"""
STORED = """
SELECT provider, account_id, mode,
       COUNT(*) FILTER (WHERE received_at > NOW() - INTERVAL '1 hour') AS stored_last_hour,
       MAX(received_at) AS newest,
       MAX(received_at) > (SELECT MIN(created_at) FROM billing_signature_failures
                           WHERE endpoint = 'webhook' AND created_at > NOW() - INTERVAL '1 hour') AS since_they_fail
FROM webhook_events
WHERE received_at > NOW() - INTERVAL '7 days'
GROUP BY provider, account_id, mode
ORDER BY provider, account_id, mode;
"""
ALERTS = """
SELECT key, severity, title, created_at, recovered_at
FROM alerts
WHERE key LIKE 'webhooks.signature_spike:%'
ORDER BY created_at DESC
LIMIT 5;
"""
# As many in an hour are a spike; fewer are somebody's mistake, and nobody's work.
SPIKE = 10
MANY = 3
BY_HAND = "nothing of this is mended by a program: what follows is a person's"


async def diagnose(desk: Desk) -> Diagnosis:
    """Which of the runbook's patterns the refusals of an hour are, place by place."""
    places, failures = await desk.rows(PLACES), await desk.rows(FAILURES)
    stored, alerts = await desk.rows(STORED), await desk.rows(ALERTS)
    facts = [
        Fact("refused in the last hour, by place", places, PLACES),
        Fact("by address, tenant and agent", failures, FAILURES),
        Fact("what still comes through", stored, STORED),
        Fact("the alert", alerts, ALERTS),
    ]
    total = sum(row["n"] for row in places)
    if total < SPIKE:
        summary = f"{total} refused signatures in an hour, {SPIKE} are a spike"
        return Diagnosis("signatures", Verdict.OK, summary, facts)
    told = [_pattern(row, stored) for row in places]
    verdict = Verdict.CRITICAL if any(grave for grave, _, _ in told) else Verdict.WARNING
    summary = f"{total} refused signatures in an hour: " + "; ".join(what for _, what, _ in told)
    following = list(dict.fromkeys(step for _, _, steps in told for step in steps))
    return Diagnosis("signatures", verdict, summary, facts, next_steps=[*following, BY_HAND])


def _pattern(
    place: Mapping[str, Any], stored: Sequence[Mapping[str, Any]]
) -> tuple[bool, str, tuple[str, ...]]:
    """(whether money may be stuck, what it is, what to do about it)."""
    if place["place"].startswith("/payment/verify"):
        return _of_payments(place)
    if place["place"] != "webhook":
        # Which account an address of its own stands for is told by the settings alone.
        return (
            True,
            f"{place['place']}: an address with secrets of its own",
            (
                f"is {place['place']}'s secret in WEBHOOKS_ENDPOINTS the one of its dashboard? Deliveries to it: see"
                " `what still comes through`",
            ),
        )
    if not any(row["since_they_fail"] for row in stored):
        return (
            True,
            "webhook: none of the provider's is stored any more, so the secret here is not the provider's",
            (
                "compare RAZORPAY_WEBHOOK_SECRET with the provider's dashboard (Webhooks, the endpoint, Secret); set ours"
                " right and restart the ingress: the provider repeats for 24 hours what was refused",
                "if it was changed there without us: docs/runbooks.md, Secret rotation, In the wrong order",
                "then watch for 15 minutes: billctl fix rotation",
            ),
        )
    if place["as_the_provider"] == place["n"]:
        return (
            True,
            "webhook: some of the provider's are refused while others are stored",
            (
                "two ingresses with different secrets, or an old secret that left too soon: compare the environment of"
                " each, and billctl fix rotation",
            ),
        )
    if place["addresses"] == 1:
        return (
            False,
            f"webhook: one stranger, {place['one_address']}, knocks while deliveries go on",
            (f"nothing is lost; block {place['one_address']} at the gateway or CDN if it does not stop",),
        )
    return (
        False,
        f"webhook: strangers at {place['addresses']} addresses knock while deliveries go on",
        ("nothing is lost; block the addresses above at the gateway or CDN if they do not stop",),
    )


def _of_payments(place: Mapping[str, Any]) -> tuple[bool, str, tuple[str, ...]]:
    if place["tenants"] >= MANY:
        return (
            True,
            f"/payment/verify: {place['tenants']} tenants at once, so our key or the page is wrong",
            (
                "compare RAZORPAY_KEY_SECRET with the provider's dashboard (API keys), and what the checkout page posts"
                " with the last deploy",
            ),
        )
    tenant = place["one_tenant"] or "a tenant that is not known"
    if place["addresses"] == 1:
        return (
            False,
            f"/payment/verify: {place['one_address']} makes up payments of {tenant}",
            (
                f"nothing was granted; tell the contact of {tenant}, and block {place['one_address']} at the gateway or CDN"
                " if it goes on",
            ),
        )
    if not place["addresses"]:
        return (
            False,
            f"/payment/verify: made-up payments of {tenant}, from addresses that the product did not tell",
            (
                f"nothing was granted; find the addresses at the gateway, and tell the contact of {tenant}: are they"
                " many, its API key is broken or stolen; remote_ip of VerifyPayment brings them here",
            ),
        )
    return (
        False,
        f"/payment/verify: {place['addresses']} addresses in the name of {tenant}",
        (
            f"its API key is broken or stolen: rotate the key of {tenant} at the gateway, and tell its contact",
        ),
    )
