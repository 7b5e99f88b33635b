"""Reading a request's body: so many bytes, so many seconds, and not one more."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

# So much of any body may wait in memory; what goes beyond shares one budget, so that many large bodies that never end
# cannot take all of it.
_FREE_BYTES = 64 << 10
# A sender who is still writing would see a reset instead of the answer, so a little more is read and thrown away.
_READ_AND_DROP_BYTES = 8 << 20


class TooLarge(Exception):
    """More bytes than allowed; none of them was kept."""


class TooSlow(Exception):
    """The body did not arrive in time."""


class Gone(Exception):
    """The sender hung up."""


class Crowded(Exception):
    """Too many large bodies are under way; this one may come again."""


class Budget:
    """Memory for large bodies, shared by all requests of a process."""

    def __init__(self, bytes_max: int = 64 << 20) -> None:
        self._left = bytes_max

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request takes of it, until it is answered: a body that waits to be stored is in memory, too."""
        share = Share(self)
        try:
            yield share
        finally:
            share.grow_to(0)

    def take(self, size: int) -> None:
        """Reserves memory, or raises Crowded; a negative size gives it back."""
        if size > self._left:
            raise Crowded
        self._left -= size


class Share:
    """One request's part of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0

    def grow_to(self, size: int) -> None:
        """Holds so much, or raises Crowded."""
        self._budget.take(size - self._taken)
        self._taken = size


async def read_body(request: Request, share: Share, *, bytes_max: int, seconds: float) -> bytes:
    """The raw bytes as they came. What `Content-Length` says only helps to refuse early."""
    declared = _declared(request)
    early = declared > bytes_max + _READ_AND_DROP_BYTES or (
        declared > bytes_max and request.headers.get("expect", "").lower() == "100-continue"
    )
    if early:
        raise TooLarge
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= bytes_max:
                    share.grow_to(max(0, received - _FREE_BYTES))
                    body += chunk
                else:
                    body.clear()
                    share.grow_to(0)
                    if received > bytes_max + _READ_AND_DROP_BYTES:
                        break
    except TimeoutError:
        raise (TooLarge if received > bytes_max else TooSlow) from None
    except ClientDisconnect:
        raise Gone from None
    if received > bytes_max:
        raise TooLarge
    return bytes(body)


def _declared(request: Request) -> int:
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else 0
