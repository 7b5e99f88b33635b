"""The ingress that only takes in: `python -m bench.undelivered` is `python -m services.webhooks` with its delivery idle."""

from __future__ import annotations

import asyncio

from services.webhooks.__main__ import main
from services.webhooks.loop import DeliveryLoop


async def _nothing(self: DeliveryLoop) -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    DeliveryLoop.run = _nothing  # type: ignore[method-assign]
    main()
