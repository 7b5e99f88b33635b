"""Reading a request's body: so many bytes, so many seconds, and not one more."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope

# In a request's state: its body is here as a whole.
WHOLE = "whole"

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

    def share(self) -> "Share":
        """What one request takes of it, until it is answered: a body that waits to be stored is in memory, too."""
        return Share(self)

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
        if size != self._taken:
            self._budget.take(size - self._taken)
            self._taken = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.grow_to(0)


async def read_body(scope: Scope, receive: Receive, share: Share, *, bytes_max: int, seconds: float) -> bytes:
    """The raw bytes as they came. What `Content-Length` says only helps to refuse early."""
    declared, expected = _declared(scope)
    if declared > bytes_max + _READ_AND_DROP_BYTES or (declared > bytes_max and expected):
        raise TooLarge
    incoming = _Incoming(share, bytes_max)
    if scope.get("state", {}).get(WHOLE):
        await incoming.read(receive)  # there is nothing to wait for
    else:
        try:
            async with asyncio.timeout(seconds):
                await incoming.read(receive)
        except TimeoutError:
            raise (TooLarge if incoming.is_too_large else TooSlow) from None
    if incoming.is_too_large:
        raise TooLarge
    return bytes(incoming.body)


class _Incoming:
    """A body as far as it has come."""

    def __init__(self, share: Share, bytes_max: int) -> None:
        self._share = share
        self._bytes_max = bytes_max
        self._received = 0
        self.body = bytearray()

    @property
    def is_too_large(self) -> bool:
        return self._received > self._bytes_max

    async def read(self, receive: Receive) -> None:
        """Reads on until its end, or until it is far too large."""
        more = True
        while more and self._received <= self._bytes_max + _READ_AND_DROP_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            self._take(message.get("body", b""))
            more = message.get("more_body", False)

    def _take(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self.is_too_large:
            self.body.clear()
            self._share.grow_to(0)
        else:
            self._share.grow_to(max(0, self._received - _FREE_BYTES))
            self.body += chunk


def _declared(scope: Scope) -> tuple[int, bool]:
    length, expected = b"", False
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = length or value
        elif name == b"expect":
            expected = value.lower() == b"100-continue"
    return (int(length) if length.isdigit() and len(length) < 20 else 0), expected
