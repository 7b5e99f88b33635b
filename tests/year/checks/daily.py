"""What is looked at while the year goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tests.year.place import Place

PAGE = 100
# A subscription that takes money, or will at its next charge; a mandate for later is not one yet.
LIVE = ("active", "pending", "halted", "paused")


async def everything(place: Place, kind: str) -> AsyncIterator[dict[str, Any]]:
    """A whole list of the provider's REST API, page after page."""
    skip = 0
    while True:
        answer = await place.sandbox.get(f"/v1/{kind}", params={"count": PAGE, "skip": skip})
        answer.raise_for_status()
        items = answer.json()["items"]
        for item in items:
            yield item
        if len(items) < PAGE:
            return
        skip += PAGE


async def two_live_subscriptions(place: Place) -> set[str]:
    """Tenants for whom the provider holds more than one."""
    live = Counter(
        [
            each["notes"]["tenant_id"]
            async for each in everything(place, "subscriptions")
            if each["status"] in LIVE and isinstance(each["notes"], dict) and "tenant_id" in each["notes"]
        ]
    )
    return {tenant for tenant, number in live.items() if number > 1}
