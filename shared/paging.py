"""Opaque page tokens and page sizes."""

import base64
import binascii
import re

from shared.errors import InvalidArgument

DEFAULT_PAGE = 50

_NUMBER = re.compile(r"[0-9]{1,18}")


def size(asked: int) -> int:
    """The page size, 0 meaning the default; the contract bounds the rest."""
    return asked or DEFAULT_PAGE


def token(last: str) -> str:
    """Where the next page begins, in a form that callers cannot lean on."""
    return base64.urlsafe_b64encode(last.encode()).decode().rstrip("=")


def position(page_token: str) -> str | None:
    """Where a page begins; None for the first one. A token that we did not make is refused."""
    if not page_token:
        return None
    try:
        last = base64.b64decode(
            page_token + "=" * (-len(page_token) % 4), altchars=b"-_", validate=True
        ).decode()
    except (binascii.Error, ValueError) as error:
        raise _not_ours() from error
    if "\0" in last:  # no position of ours holds it, and no query could
        raise _not_ours()
    return last


def number(page_token: str) -> int | None:
    """The same where pages follow a bigint."""
    last = position(page_token)
    if last is None:
        return None
    if not _NUMBER.fullmatch(last):
        raise _not_ours()
    return int(last)


def _not_ours() -> InvalidArgument:
    return InvalidArgument(
        "page_token is not one of ours",
        violations=[("page_token", "pass the next_page_token of the page before, or nothing")],
    )
