"""Page tokens: where the page before ended, readable by this room alone."""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime

from services.webhooks.errors import PageTokenInvalid

DEFAULT_SIZE = 50


@dataclass(frozen=True)
class Position:
    """The last row of a page; the next one begins right before it in time."""

    moment: datetime
    id: str


def page_token(position: Position) -> str:
    """The token of the page after this position."""
    plain = f"{position.moment.isoformat()} {position.id}"
    return base64.urlsafe_b64encode(plain.encode()).decode()


def position_of(token: str) -> Position | None:
    """The position that a token names; None for the first page."""
    if not token:
        return None
    try:
        moment, _, id = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        position = Position(datetime.fromisoformat(moment), id)
    except (binascii.Error, ValueError):
        position = None
    if position is None or position.moment.tzinfo is None or not position.id or "\x00" in position.id:
        raise PageTokenInvalid(
            "page_token is not one of this list",
            violations=[("page_token", "was not made by this list; start again without one")],
        )
    return position
