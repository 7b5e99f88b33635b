"""Numbered batches on a stream: worked on side by side, answered in order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from shared.errors import BillingError, InvalidArgument

# Batches of one stream that are worked on at once; the next one is read when the first of them is answered.
WINDOW = 8


class Numbered(Protocol):
    """A batch with the caller's number."""

    number: int


Request = TypeVar("Request", bound=Numbered)
Answer = TypeVar("Answer")


async def in_order(
    requests: AsyncIterator[Request], work: Callable[[Request], Awaitable[Answer]]
) -> AsyncIterator[tuple[int, Answer]]:
    """(number, answer) of each batch, in their order. Numbers rise by one from whatever the first is.

    Batches begin in the order in which they came. One that is refused as it is ends the stream, but only once those
    before it are answered: they may have had an effect. A stream that ends early leaves what was begun to its keys.
    """
    begun: deque[tuple[int, asyncio.Task[Answer]]] = deque()
    reading: asyncio.Task[Request | None] | None = _read(requests)
    expected: int | None = None
    refusal: BillingError | None = None
    try:
        while begun or reading is not None:
            waiting: list[asyncio.Task[Any]] = [begun[0][1]] if begun else []
            if reading is not None and len(begun) < WINDOW:
                waiting.append(reading)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if begun and begun[0][1].done():
                number, task = begun.popleft()
                yield number, task.result()
            elif reading is not None and reading.done():
                try:
                    request = reading.result()
                    expected = None if request is None else _next(expected, request.number)
                except BillingError as error:
                    request, refusal = None, error
                if request is None:
                    reading = None
                    continue
                begun.append((request.number, asyncio.create_task(_run(work, request))))
                reading = _read(requests)
        if refusal is not None:
            raise refusal
    finally:
        for _, task in begun:
            task.cancel()
        if reading is not None:
            reading.cancel()


def _read(requests: AsyncIterator[Request]) -> asyncio.Task[Request | None]:
    async def read() -> Request | None:
        return await anext(requests, None)

    return asyncio.create_task(read())


async def _run(work: Callable[[Request], Awaitable[Answer]], request: Request) -> Answer:
    return await work(request)


def _next(expected: int | None, number: int) -> int:
    if expected is not None and number != expected:
        what = f"must be {expected}: numbers rise by one"
        raise InvalidArgument(f"number {what}", violations=[("number", what)])
    return number + 1
