"""Reading a request's body: so many bytes, so many seconds, and not one more."""

import asyncio

from starlette.requests import ClientDisconnect, Request

# A sender who is still writing would see a reset instead of the answer, so a little more is read and thrown away.
_READ_AND_DROP_BYTES = 8 << 20


class TooLarge(Exception):
    """More bytes than allowed; none of them was kept."""


class TooSlow(Exception):
    """The body did not arrive in time."""


class Gone(Exception):
    """The sender hung up."""


async def read_body(request: Request, *, bytes_max: int, seconds: float) -> bytes:
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
                    body += chunk
                else:
                    body.clear()
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
