"""Values that must turn up nowhere, and the search for them in everything that a suite leaves behind."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from shared import sensitive
from suite import processes

# How a number is written: as it is, on the card, on paper, and out of a word processor.
SPACINGS = ("", " ", "-", "\u00a0")
# Ten digits in the middle of each number are the same; between them stand one or two beginnings of each scheme.
SCHEMES = (
    *(("visa", "4111", 16), ("visa 13", "40", 13), ("visa 19", "4917", 19), ("mastercard", "5404", 16)),
    *(("mastercard 2", "2223", 16), ("amex", "3782", 15), ("diners", "305", 14), ("jcb", "3530", 16)),
    *(("discover", "6011", 16), ("maestro", "6759", 16), ("rupay", "6521", 16), ("rupay 8", "8172", 16)),
    *(("rupay old", "5085", 16), ("unionpay", "6212", 16)),
)
# Every name under which nothing is kept, as people and programs spell them.
NAMES = (
    *("cvv", "CVV2", "Cvc", "cvc2", "CSC", "security_code", "Security Code", "securityCode", "card[cvv]"),
    *("card_number", "Card-Number", "cardNumber", "card number", "primary_account_number"),
    *("account_number", "pin_block", "PinBlock", "card_pin", "track1", "TRACK_2", "track-data", "Track1Data"),
    *(
        "magstripe",
        "password",
        "Passwd",
        "PASSWORD",
        "otp",
        "secret",
        "client_secret",
        "key-secret",
        "keySecret",
    ),
    *("webhook_secret", "api_key", "Api-Key", "apiKey", "api_secret", "access_token", "refreshToken"),
    *("private_key", "Authorization", "x-gateway-key", "passphrase", "secret_key", "Auth-Token"),
)
CONTEXT = 48


@dataclass(frozen=True)
class Canaries:
    """One run's values. All secrets carry one mark and all cards one run of digits, so that one look finds any."""

    mark: str = field(default_factory=lambda: f"cNrY{secrets.token_hex(5)}")
    digits: str = field(default_factory=lambda: f"{secrets.randbelow(10**10):010d}")
    # Not forbidden in rows, where people put it; but no log, no metric and no command line is the place for it.
    whisper: str = field(default_factory=lambda: f"wHspR{secrets.token_hex(5)}")

    def secret(self, what: str = "") -> str:
        """A value that looks like a key."""
        return f"{what}{self.mark}{secrets.token_hex(6)}"

    def cards(self) -> Iterator[str]:
        """Numbers of every scheme in every spacing, without end; what people write, so as their doors must see it."""
        written = [
            spaced(self.card(start, length), each) for _, start, length in SCHEMES for each in SPACINGS
        ]
        return cycle(written)

    def card(self, start: str = "4111", length: int = 16) -> str:
        """A number that a scheme may have issued."""
        body = f"{start}{self.digits}".ljust(length - 1, "0")
        return next(body + last for last in "0123456789" if sensitive.looks_like_card(body + last))

    def named(self) -> dict[str, str]:
        """A value under every forbidden name."""
        return {name: self.secret() for name in NAMES}

    def needles(self, more: Iterable[str] = ()) -> dict[bytes, str]:
        """What to look for, and what was found with it."""
        found: dict[bytes, str] = {}
        for text in (self.mark, *more):
            found |= dict.fromkeys(encodings(text), "a secret")
        for spacing in (*SPACINGS, ".", "%20", "+", "\\u00a0", "\\xa0", "\\xc2\\xa0", "%C2%A0"):
            for sizes in ((4, 4, 2), (6, 4), (3, 4, 3), (1, 4, 4, 1), (2, 4, 4)):
                found[spaced(self.digits, spacing, sizes).encode()] = "a card"
        for text in (self.digits, spaced(self.digits, " ")):
            found |= dict.fromkeys(encodings(text), "a card")
        return found

    def whispers(self) -> dict[bytes, str]:
        """What may lie in rows and nowhere else."""
        return dict.fromkeys(encodings(self.whisper), "a caller's words")


def spaced(number: str, spacing: str, sizes: tuple[int, ...] = ()) -> str:
    """In groups of four, or of these sizes; American Express in its own."""
    if not sizes:
        sizes = (4, 6, 5) if len(number) == 15 else (4, 4, 4, 4, 3)
    parts, at = [], 0
    for size in sizes:
        parts.append(number[at : at + size])
        at += size
    return spacing.join(part for part in parts if part)


def encodings(text: str) -> set[bytes]:
    """The ways in which a value is written down by programs."""
    raw = text.encode()
    found = {
        raw,
        raw.lower(),
        raw.upper(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        quote(text).encode(),
    }
    found |= {text.encode("utf-16-le"), text.encode("utf-16-be")}
    for shift in range(3):
        # In base64 a value looks different at each of three places; its first and last letters hang together with
        # what stands beside it.
        whole = base64.b64encode(bytes(shift) + raw)
        found.add(whole[4 if shift else 0 : len(whole) - 4])
    return found


@dataclass(frozen=True)
class Hit:
    """A canary, where it was found and what stands around it."""

    place: str
    what: str
    around: str


def hits(places: dict[str, bytes], needles: dict[bytes, str]) -> list[Hit]:
    """The first canary of each kind in each place."""
    found = []
    for place, content in places.items():
        seen = set()
        for needle, what in needles.items():
            at = content.find(needle)
            if at >= 0 and what not in seen:
                seen.add(what)
                around = content[max(0, at - CONTEXT) : at + len(needle) + CONTEXT]
                found.append(Hit(place, what, around.decode("utf-8", "backslashreplace")))
    return found


def tables(admin_url: str) -> dict[str, bytes]:
    """Every value of every table of every schema, bytes as they are."""
    places = {}
    with psycopg.connect(admin_url) as db:
        names = db.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
        ).fetchall()
        for schema, table in names:
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))
            # Text for what psycopg would make Python objects of, and the bytes of bytea beside it.
            rows = db.execute(query).fetchall()
            texts = db.execute(
                sql.SQL("SELECT each::text FROM {} each").format(sql.Identifier(schema, table))
            ).fetchall()
            parts = [text.encode() for (text,) in texts]
            parts += [bytes(value) for row in rows for value in row if isinstance(value, bytes | memoryview)]
            places[f"{schema}.{table}"] = b"\n".join(parts)
    return places


def files(folder: Path, *, below: str = "") -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def command_lines(pids: Iterable[int]) -> dict[str, bytes]:
    """What everybody on the machine can read of a process."""
    found = {}
    for pid in pids:
        if processes.started_at(pid) is not None:
            found[f"cmdline of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return found


def everything_said(values: Iterable[Any]) -> bytes:
    """Whatever was answered, as one text."""
    return b"\n".join(value if isinstance(value, bytes) else repr(value).encode() for value in values)
