"""A process that measures: it is told what to do by lines of JSON, and answers each with one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

Handle = Callable[[dict[str, Any]], Awaitable[Any]]


def serve(handle: Handle) -> None:
    """Answers until its input ends."""
    uvloop.run(_serve(handle))


async def _serve(handle: Handle) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = {"answer": await handle(json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
