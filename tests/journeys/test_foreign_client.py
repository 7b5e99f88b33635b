"""What an operator or a product in another language sees: `buf curl` against the running suite."""

from __future__ import annotations

import pytest

from tests.journeys import foreign
from tests.suite.running import RunningSuite

DEBIT = "billing.ledger.v1.LedgerService/Debit"
GRANT = "billing.ledger.v1.LedgerFundingService/GrantCredits"


@pytest.fixture
def ledger(running_suite: RunningSuite) -> str:
    return str(running_suite.runtime["addresses"]["ledger"])


@pytest.fixture
def keys(running_suite: RunningSuite) -> dict[str, str]:
    return {name.removesuffix("_secret"): value for name, value in running_suite.runtime["secrets"].items()}


def fund(ledger: str, keys: dict[str, str], tenant: str, credits: int) -> None:
    request = {
        "tenantId": tenant,
        "idempotencyKey": f"grant:{tenant}",
        "bucket": "BUCKET_PERMANENT",
        "credits": str(credits),
        "referenceId": f"test:{tenant}",
        "reason": "credit_pack",
    }
    assert foreign.call(ledger, GRANT, request, key=keys["room"]).code == foreign.OK


@pytest.mark.parametrize(
    ("room", "method"),
    [
        ("ledger", "billing.ledger.v1.LedgerService/Debit"),
        ("subscriptions", "billing.subscriptions.v1.SubscriptionsService/Checkout"),
        ("webhooks", "billing.webhooks.v1.WebhooksAdminService/ReplayEvents"),
        ("scheduler", "billing.scheduler.v1.SchedulerService/RunJob"),
    ],
)
def test_reflection_lists_a_rooms_methods(
    running_suite: RunningSuite, keys: dict[str, str], room: str, method: str
) -> None:
    address = running_suite.runtime["addresses"][room]

    listed = foreign.list_methods(address, key=keys["operator"])
    refused = foreign.list_methods(address, key=None)

    assert method in listed.text.split()
    assert refused.code != foreign.OK


def test_a_debit_the_same_again_and_one_too_many(ledger: str, keys: dict[str, str], tenant: str) -> None:
    fund(ledger, keys, tenant, 10)
    debit = {"tenantId": tenant, "idempotencyKey": "k1", "credits": "7", "reason": "blog.publish"}

    first = foreign.call(ledger, DEBIT, debit, key=keys["gateway"])
    again = foreign.call(ledger, DEBIT, debit, key=keys["gateway"])
    reused = foreign.call(ledger, DEBIT, {**debit, "credits": "8"}, key=keys["gateway"])
    too_many = foreign.call(
        ledger, DEBIT, {**debit, "idempotencyKey": "k2", "credits": "4"}, key=keys["gateway"]
    )

    assert (first.code, first.body["balance"]["available"]) == (foreign.OK, "3")
    assert (again.body["replayed"], again.body["transaction"]) == (True, first.body["transaction"])
    assert (reused.code, reused.reason) == (foreign.FAILED_PRECONDITION, "IDEMPOTENCY_KEY_REUSED")
    assert (too_many.code, too_many.reason) == (foreign.FAILED_PRECONDITION, "INSUFFICIENT_CREDITS")


@pytest.mark.parametrize("credits", ["0", "-1", "1000000000001"])
def test_absurd_credits_are_refused_by_name(
    ledger: str, keys: dict[str, str], tenant: str, credits: str
) -> None:
    debit = {"tenantId": tenant, "idempotencyKey": "k", "credits": credits, "reason": "blog.publish"}

    answer = foreign.call(ledger, DEBIT, debit, key=keys["gateway"])

    assert answer.code == foreign.INVALID_ARGUMENT
    assert "credits" in answer.body["message"]


def test_an_unknown_tenant_is_not_found(
    running_suite: RunningSuite, ledger: str, keys: dict[str, str]
) -> None:
    debit = {"tenantId": "nobody", "idempotencyKey": "k", "credits": "1", "reason": "blog.publish"}
    checkout = {
        "tenantId": "nobody",
        "idempotencyKey": "k",
        "planCode": "pro",
        "cycle": "BILLING_CYCLE_MONTHLY",
    }
    subscriptions = running_suite.runtime["addresses"]["subscriptions"]

    refused = foreign.call(ledger, DEBIT, debit, key=keys["gateway"])
    no_checkout = foreign.call(
        subscriptions, "billing.subscriptions.v1.SubscriptionsService/Checkout", checkout, key=keys["gateway"]
    )

    assert (refused.code, refused.reason) == (foreign.NOT_FOUND, "UNKNOWN_TENANT")
    assert no_checkout.code == foreign.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "key", "code"),
    [
        (DEBIT, None, foreign.UNAUTHENTICATED),
        (DEBIT, "wrong", foreign.UNAUTHENTICATED),
        (GRANT, "gateway", foreign.PERMISSION_DENIED),
        (GRANT, "operator", foreign.PERMISSION_DENIED),
        ("billing.ledger.v1.LedgerMaintenanceService/SettleExpired", "gateway", foreign.PERMISSION_DENIED),
    ],
)
def test_each_door_of_the_ledger_asks_for_its_own_key(
    ledger: str, keys: dict[str, str], method: str, key: str | None, code: int
) -> None:
    value = None if key is None else keys.get(key, key)
    if key in (None, "wrong"):
        # Reflection asks for a key as well, so a stranger brings the schema along.
        answer = foreign.run(
            *([] if value is None else ["-H", f"x-gateway-key: {value}"]),
            *("--schema", "proto", "--schema", "third_party"),
            *("-d", "{}", f"http://{ledger}/{method}"),
        )
    else:
        answer = foreign.call(ledger, method, {}, key=value)

    assert answer.code == code


@pytest.mark.parametrize(
    ("room", "method"),
    [
        ("subscriptions", "billing.subscriptions.v1.SubscriptionsAdminService/RebuildEntitlements"),
        ("webhooks", "billing.webhooks.v1.WebhooksAdminService/ListEvents"),
        ("scheduler", "billing.scheduler.v1.SchedulerService/ListJobs"),
    ],
)
def test_operators_services_refuse_a_products_key(
    running_suite: RunningSuite, keys: dict[str, str], room: str, method: str
) -> None:
    address = running_suite.runtime["addresses"][room]

    assert foreign.call(address, method, {}, key=keys["gateway"]).code == foreign.PERMISSION_DENIED


def test_an_operator_runs_a_job_and_sees_it_in_the_history(
    running_suite: RunningSuite, keys: dict[str, str], tenant: str
) -> None:
    scheduler = running_suite.runtime["addresses"]["scheduler"]
    service = "billing.scheduler.v1.SchedulerService"

    ran = foreign.call(
        scheduler,
        f"{service}/RunJob",
        {"job": "settle_expired", "idempotencyKey": tenant},
        key=keys["operator"],
    )
    runs = foreign.call(scheduler, f"{service}/ListRuns", {"job": "settle_expired"}, key=keys["operator"])

    assert ran.code == foreign.OK, ran.text
    assert ran.body["run"]["outcome"] == "RUN_OUTCOME_SUCCEEDED"
    assert ran.body["run"]["id"] in [each["id"] for each in runs.body["runs"]]
