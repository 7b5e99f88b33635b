"""One sandbox for all tests of a worker, and builders of what they talk about."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sandbox.running import Sandbox

TRIAL = 14 * 86_400


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    running = Sandbox()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _calm(request: pytest.FixtureRequest) -> Iterator[None]:
    """No fault and no endpoint of one test reaches the next."""
    yield
    if "sandbox" in request.fixturenames:
        running: Sandbox = request.getfixturevalue("sandbox")
        running.http.delete("/_sandbox/faults")
        running.set("webhook_endpoint", url=None)


@pytest.fixture(scope="session")
def sdk(sandbox: Sandbox) -> Any:
    return sandbox.sdk


@pytest.fixture(scope="session")
def plan(sdk: Any) -> dict[str, Any]:
    created: dict[str, Any] = sdk.plan.create(
        {
            "period": "monthly",
            "interval": 1,
            "item": {"name": "Pro Monthly", "amount": 235_882, "currency": "INR"},
        }
    )
    return created


class Builder:
    """Makes valid things; a test overrides what it is about."""

    def __init__(self, sandbox: Sandbox, sdk: Any, plan: dict[str, Any]) -> None:
        self.sandbox, self.sdk, self.plan = sandbox, sdk, plan

    def subscription(self, **override: Any) -> str:
        request = {
            "plan_id": self.plan["id"],
            "total_count": 120,
            "notes": {"tenant_id": "tn_01", "plan_code": "pro"},
        }
        subscription_id: str = self.sdk.subscription.create(request | override)["id"]
        return subscription_id

    def paid_subscription(self, *, method: str = "card", international: bool = False, **override: Any) -> str:
        subscription_id = self.subscription(**override)
        self.sandbox.act(f"subscriptions/{subscription_id}/pay", method=method, international=international)
        return subscription_id

    def trial(self, *, method: str = "upi", **override: Any) -> str:
        start_at = int(time.time()) + TRIAL
        subscription_id = self.subscription(start_at=start_at, expire_by=start_at, **override)
        self.sandbox.act(f"subscriptions/{subscription_id}/authenticate", method=method)
        return subscription_id

    def order(self, **override: Any) -> str:
        request = {"amount": 166_000, "currency": "INR", "receipt": "cp_7f3a2c", "notes": {"pack": "medium"}}
        order_id: str = self.sdk.order.create(request | override)["id"]
        return order_id

    def paid_order(self, *, method: str = "upi", **override: Any) -> tuple[str, str]:
        order_id = self.order(**override)
        deliveries = self.sandbox.act(f"orders/{order_id}/pay", method=method)
        return order_id, deliveries[0]["parsed"]["payload"]["payment"]["entity"]["id"]


@pytest.fixture(scope="session")
def a(sandbox: Sandbox, sdk: Any, plan: dict[str, Any]) -> Builder:
    return Builder(sandbox, sdk, plan)
