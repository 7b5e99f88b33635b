"""The page of runbooks: what it says to type, and whether what came of it is what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.suite.running import HOUSE

PAGE = HOUSE / "docs" / "runbooks.md"
# What differs from one incident to the next, in JSON, in psql's manner and on billctl's screen.
VARYING = (
    (
        re.compile(
            r"\b(evt|dead|sig|aud|run|req|sub|pay|order|cust|inv|plan|int|token|acc|fnd|tsk|alr|txn|rfnd|rfd|ntf)"
            r"_[A-Za-z0-9_]{5,}"
        ),
        r"\1_…",
    ),
    (re.compile(r"\bsha256:[0-9a-f]{16}\b"), "sha256:…"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d[\d:.]+(Z|\+00(:00)?)?"), "<moment>"),
    (re.compile(r"\b(\d+ days?, )?\d+:\d\d:\d\d\b"), "<while>"),
    (re.compile(r"\bslowest \d+ ms"), "slowest <n> ms"),
    (re.compile(r"\b127\.0\.0\.1:\d{4,5}\b"), "127.0.0.1:<port>"),
    (re.compile(r"\b(hangs|serving) +[\d.]+$", re.MULTILINE), r"\1 <n>"),
    # The provider's silence is by the test's clock, what billctl counts by the database's.
    (re.compile(r"-?\d+ minutes\b"), "<n> minutes"),
    (re.compile(r"\bcompared \d+"), "compared <n>"),
    (re.compile(r"\bPostgreSQL [\d.]+"), "PostgreSQL <n>"),
    (re.compile(r"\b15\.\d{1,16}"), "15.<n>"),
    (
        re.compile(r'("(?:created_at|current_start|current_end|charge_at|start_at|end_at)"): \d+'),
        r"\1: <seconds>",
    ),
    (re.compile(r'("(?:owner|nextPageToken)"): "[^"]+"'), r'\1: "…"'),
)
# A line of the page that stands for any number of lines.
LEFT_OUT = "…"


@dataclass(frozen=True)
class Block:
    """One fence of the page, and what the page says comes of it."""

    kind: str
    typed: str
    expected: str


def sections() -> dict[str, list[Block]]:
    """The blocks under each heading; those before the first heading, which define the helpers, are under ''."""
    found: dict[str, list[Block]] = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        heading = "" if not found else part.splitlines()[0]
        blocks = found.setdefault(heading, [])
        for kind, content in re.findall(
            r"^```(sh|sql|text)\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL
        ):
            if kind == "text":
                assert not blocks[-1].expected, f"two answers to\n{blocks[-1].typed}"
                blocks[-1] = Block(blocks[-1].kind, blocks[-1].typed, content)
            else:
                blocks.append(Block(kind, content, ""))
    return found


def plain(text: str) -> list[str]:
    """The lines; what varies and the padding of tables left out."""
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.strip().splitlines())
    return [line for line in lines if line and not re.fullmatch(r"[-+ ]+|\(\d+ rows?\)", line)]


def is_what_the_page_says(block: Block, answer: str) -> bool:
    """Line by line; where the page leaves lines out, as many as it takes. Rows that no query orders have no order."""
    said, came = plain(block.expected), plain(answer)
    if block.kind == "sql" and "ORDER BY" not in block.typed and LEFT_OUT not in said:
        said, came = sorted(said), sorted(came)
    pattern = "".join("(.*\n)*" if line == LEFT_OUT else _line(line) for line in said)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in came)) is not None


def _line(said: str) -> str:
    """A line, of which the page may leave the end out."""
    if said.endswith(f" {LEFT_OUT}"):
        return re.escape(said.removesuffix(LEFT_OUT)) + ".*\n"
    return re.escape(f"{said}\n")
