"""The page of runbooks, typed as it is printed, each against a running suite in which its incident was staged."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from shared import clock
from suite.postgres import ADMIN
from tests.journeys import shell
from tests.journeys.test_hostile_deliveries import paid
from tests.journeys.test_kill import clients_of
from tests.suite.running import HOUSE, RunningSuite
from tests.webhooks.harness import eventually, sample

PAGE = HOUSE / "docs" / "runbooks.md"
TENANT = "zenith"
# Incidents in seconds, all of them from one address.
SETTINGS = {
    "WEBHOOKS_DELIVERY_ATTEMPTS": "2",
    "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.05",
    "WEBHOOKS_UNSIGNED_PER_15_MINUTES": "0",
}
CUT = "---- end of block ----"
# What differs from one incident to the next, in JSON and in psql's manner.
VARYING = (
    (
        re.compile(
            r"\b(evt|dead|sig|aud|run|req|sub|pay|order|cust|inv|plan|int|token|acc|fnd)_[A-Za-z0-9_]{5,}"
        ),
        r"\1_…",
    ),
    (re.compile(r"\bsha256:[0-9a-f]{16}\b"), "sha256:…"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(Z|\+00(:00)?)?"), "<moment>"),
    (
        re.compile(r'("(?:created_at|current_start|current_end|charge_at|start_at|end_at)"): \d+'),
        r"\1: <seconds>",
    ),
    (re.compile(r'("(?:owner|nextPageToken)"): "[^"]+"'), r'\1: "…"'),
    # Of the other incidents on the same suite, and of the moment.
    (
        re.compile(r'("(?:alerts|signatureFailuresLastHour|secondsSinceLastEvent|compared)"): -?\d+'),
        r"\1: <n>",
    ),
)

# What changes nothing and may be asked again.
LOOKS = re.compile(r"^(SELECT|webhooks (List|Get))")
LOOKS_AGAIN_SECONDS = 15.0

pytestmark = pytest.mark.skipif(
    not (HOUSE / ".venv" / ".ok").exists(), reason="the page types .venv/bin, which make setup makes"
)


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
                blocks[-1] = Block(blocks[-1].kind, blocks[-1].typed, content)
            else:
                blocks.append(Block(kind, content, ""))
    return found


def plain(text: str) -> list[str]:
    """The lines; what varies and psql's padding left out."""
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.strip().splitlines())
    return [line for line in lines if not re.fullmatch(r"[-+ ]+|\(\d+ rows?\)", line)]


class Operator:
    """Somebody with the page in hand, in a shell and in psql, beside a suite of its own."""

    def __init__(self, suite: RunningSuite) -> None:
        self.suite = suite
        self.given: dict[str, str] = {}

    def work(self, heading: str) -> list[tuple[Block, str]]:
        """Every block of a section with what came of it, in their order; whoever looks too early looks again."""
        book = sections()
        helpers = "\n".join(block.typed for block in book[""] if block.kind == "sh")
        done = []
        for block in book[heading]:
            patience = time.monotonic() + (LOOKS_AGAIN_SECONDS if LOOKS.search(block.typed) else 0)
            while True:
                answer = self._sql(block.typed) if block.kind == "sql" else self._shell(helpers, block.typed)
                if plain(answer) == plain(block.expected) or time.monotonic() >= patience:
                    break
            done.append((block, answer))
        return done

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.suite.runtime["database"]["urls"]["billing_operator"]) as db:
            return db.execute(query, values).fetchall()  # type: ignore[arg-type]

    def break_or_mend(self, statement: str) -> None:
        note = self.suite.runtime["database"]
        password = (self.suite.data_dir / "postgres" / "password").read_text()
        with psycopg.connect(
            host=note["host"],
            port=note["port"],
            dbname=note["name"],
            user=ADMIN,
            password=password,
            autocommit=True,
        ) as db:
            db.execute(statement)

    def _filled_in(self, typed: str) -> str:
        for placeholder, value in self.given.items():
            typed = typed.replace(placeholder, value)
        return typed

    def _shell(self, helpers: str, typed: str) -> str:
        told = shell.typed(self.suite, f"{helpers}\necho '{CUT}'\n{self._filled_in(typed)}")
        assert told.returncode == 0, f"{typed}\n{told.stdout}\n{told.stderr}"
        return told.stdout.split(f"{CUT}\n")[-1] + told.stderr

    def _sql(self, typed: str) -> str:
        with psycopg.connect(self.suite.runtime["database"]["urls"]["billing_operator"]) as db:
            cursor = db.execute(self._filled_in(typed))
            header = " | ".join(column.name for column in cursor.description or ())
            rows = (" | ".join("" if value is None else _word(value) for value in row) for row in cursor)
            return "\n".join([header, *rows])

    async def post(self, body: bytes, *, secret: bytes | None = None) -> int:
        """A delivery from the provider, or from somebody who does not know the secret."""
        secret = secret or self.suite.runtime["secrets"]["razorpay_webhook_secret"].encode()
        headers = {
            "x-razorpay-signature": hmac.new(secret, body, hashlib.sha256).hexdigest(),
            "user-agent": "curl/8.5.0",
        }
        async with httpx.AsyncClient(base_url=self.suite.runtime["webhooks_http_url"]) as ingress:
            return (await ingress.post("/webhooks/razorpay", content=body, headers=headers)).status_code

    async def until(self, query: str, expected: Any, *values: Any) -> None:
        async def is_so() -> bool:
            return self.rows(query, *values) == [(expected,)]

        await eventually(is_so, seconds=30)


def _word(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bool):
        return "t" if value else "f"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    folder = Path(tempfile.mkdtemp(prefix="billing-suite-"))
    folder.chmod(0o711)
    suite = RunningSuite(folder, **SETTINGS)
    try:
        suite.start()
        yield Operator(suite)
    finally:
        suite.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def signature_spike(operator: Operator) -> None:
    """Twelve deliveries that somebody signed with another secret."""
    for number in range(12):
        assert await operator.post(b'{"n": %d}' % number, secret=b"not-the-secret") == 401
    await operator.until("SELECT count(*) FROM billing_signature_failures", 12)


async def dead_letters(operator: Operator) -> None:
    """A first charge that subscriptions could not take in while it was broken, and a body that is no JSON."""
    table = "subscriptions.processed_payment_events"
    async with clients_of(operator.suite) as clients:
        bodies = await paid(clients, TENANT)
    operator.break_or_mend(f"ALTER TABLE {table} RENAME TO broken")
    try:
        began = datetime.now(UTC)
        for body in (*bodies, b'{"event": "subscription.cha'):
            assert await operator.post(body) == 200
        await operator.until("SELECT count(*) FROM webhook_dead_letter_queue", 8)
    finally:
        operator.break_or_mend("ALTER TABLE subscriptions.broken RENAME TO processed_payment_events")
    [(charge,)] = operator.rows("SELECT id FROM webhook_events WHERE event_type = 'subscription.charged'")
    [(letter,)] = operator.rows("SELECT id FROM webhook_dead_letter_queue WHERE reason = 'body_not_json'")
    operator.given = {
        "evt_…": charge,
        "dead_…": letter,
        "2026-11-21T09:00:00Z": (began - timedelta(seconds=1)).isoformat(),
        "2026-11-21T10:00:00Z": (began + timedelta(hours=1)).isoformat(),
    }


async def silence(operator: Operator) -> None:
    """A Monday afternoon in India, forty minutes after the last event."""
    now = clock.now()
    monday = (now + timedelta(days=7 - now.weekday())).replace(hour=7, minute=0, second=0, microsecond=0)
    clock.move_to(operator.suite.clock, monday - now)
    assert await operator.post(sample("payment.authorized.json")) == 200
    await operator.until("SELECT count(*) FROM webhook_events WHERE NOT processed", 0)
    clock.move_to(operator.suite.clock, monday - now + timedelta(minutes=40))
    await asyncio.sleep(1.5)  # the watch of every five minutes finds it due at once, and ends


STAGED: dict[str, Callable[[Operator], Awaitable[None]]] = {
    "Runbook 3: signatures fail": signature_spike,
    "Runbook 5b: webhooks wait, or are dead letters": dead_letters,
    "Runbook 5: webhooks are silent": silence,
}


ELSEWHERE = {"Secret rotation": "tests/journeys/test_rotation.py"}


def test_every_runbook_is_lived_through() -> None:
    """Here, or where the page is read as well."""
    assert sections().keys() - {""} == STAGED.keys() | ELSEWHERE.keys()
    for file in ELSEWHERE.values():
        assert "runbooks.md" in (HOUSE / file).read_text()


@pytest.mark.parametrize("heading", STAGED)
async def test_a_runbook_answers_what_the_page_prints(operator: Operator, heading: str) -> None:
    await STAGED[heading](operator)

    done = operator.work(heading)

    assert len(done) >= 5
    for block, answer in done:
        assert block.expected, f"the page does not say what comes of\n{block.typed}"
        assert plain(answer) == plain(block.expected), f"{block.typed}\n{answer}"
