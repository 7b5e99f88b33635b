"""The page of runbooks, typed as it is printed, each against a running suite in which its incident was staged."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journeys import runbook_customers as customers
from tests.journeys import runbook_webhooks as webhooks
from tests.journeys.runbook_operator import Incident, Operator
from tests.suite.running import HOUSE, RunningSuite

PAGE = HOUSE / "docs" / "runbooks.md"
# Incidents in seconds, all of them from one address.
SETTINGS = {
    "WEBHOOKS_DELIVERY_ATTEMPTS": "2",
    "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.05",
    "WEBHOOKS_UNSIGNED_PER_15_MINUTES": "0",
    "BILLCTL_ACTOR": "asha",
}
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

# What changes nothing and may be asked again.
CHANGES = re.compile(r"--apply|^(UPDATE|BEGIN)\b|(Replay|Requeue|Discard|Adjust)", re.MULTILINE)
LOOKS_AGAIN_SECONDS = 10.0
WELL, WANTS_A_PERSON = 0, 3

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


def work(operator: Operator, heading: str) -> Iterator[tuple[Block, str]]:
    """Every block of a section with what came of it, in their order; whoever looks too early looks again."""
    book = sections()
    helpers = "\n".join(block.typed for block in book[""] if block.kind == "sh")
    for block in book[heading]:
        patience = time.monotonic() + (0 if CHANGES.search(block.typed) else LOOKS_AGAIN_SECONDS)
        while True:
            answer = operator.types(block.kind, block.typed, helpers)
            if is_what_the_page_says(block, answer) or time.monotonic() >= patience:
                break
        yield block, answer


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    folder = Path(tempfile.mkdtemp(prefix="billing-suite-"))
    folder.chmod(0o711)
    suite = RunningSuite(folder, **SETTINGS)
    try:
        suite.start()
        yield Operator(suite)
    finally:
        if ledger := suite.pid("ledger") if suite.runtime else None:
            os.kill(ledger, signal.SIGCONT)
        suite.stop()
        shutil.rmtree(folder, ignore_errors=True)


# In the order of one bad night: the first look shows what the runbooks behind it mend one by one, and the clock
# moves, and a room hangs, when everything else is done.
STAGED: dict[str, tuple[Incident, ...]] = {
    "Post-deploy verification": (customers.a_first_customer,),
    "Runbook 0: triage": (
        customers.a_double_charge,
        customers.a_missed_escalation,
        customers.an_edited_balance,
        webhooks.a_signature_spike,
    ),
    "Runbook 1: a customer was charged twice": (customers.a_double_charge,),
    "Runbook 2: the integrity audit found something": (
        customers.an_edited_balance,
        customers.a_stray_transaction,
        customers.an_upgrade_given_up,
    ),
    "Runbook 2a: balance_mismatch": (customers.an_edited_balance,),
    "Runbook 2b: ledger_sum_mismatch": (customers.a_stray_transaction,),
    "Runbook 2c: orphan_pending_sub": (customers.an_upgrade_given_up,),
    "Runbook 3: signatures fail": (webhooks.a_signature_spike,),
    "Runbook 4: a customer is on the wrong plan": (
        customers.a_promotion_unheard_of,
        customers.limits_of_another_plan,
    ),
    "Runbook 5b: webhooks wait, or are dead letters": (webhooks.dead_letters,),
    "Runbook 6: a past-due tenant was not put on free": (customers.a_missed_escalation,),
    "Runbook 7: an action was debited at the wrong cost": (customers.debits_at_twice_the_cost,),
    "Runbook 5: webhooks are silent": (webhooks.silence,),
    "Runbook 8: everything is broken": (webhooks.a_room_that_does_not_answer,),
}
ELSEWHERE = {"Secret rotation": "tests/journeys/test_rotation.py"}


def test_every_runbook_is_lived_through() -> None:
    """Here, or where the page is read as well."""
    assert sections().keys() - {""} == STAGED.keys() | ELSEWHERE.keys()
    for file in ELSEWHERE.values():
        assert "runbooks.md" in (HOUSE / file).read_text()


def test_every_command_and_every_query_has_its_answer_on_the_page() -> None:
    book = sections()
    for heading in STAGED:
        assert len(book[heading]) >= 2, heading
        for block in book[heading]:
            assert block.expected, f"the page does not say what comes of\n{block.typed}"


@pytest.mark.parametrize("heading", STAGED)
async def test_a_runbook_answers_what_the_page_prints(operator: Operator, heading: str) -> None:
    await operator.lives_through(*STAGED[heading])

    for block, answer in work(operator, heading):
        assert is_what_the_page_says(block, answer), f"{block.typed}\n{answer}"
