"""The page of runbooks, typed as it is printed, each against a running suite in which its incident was staged."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys import runbook_customers as customers
from tests.journeys import runbook_webhooks as webhooks
from tests.journeys.runbook_operator import Incident, Operator
from tests.journeys.runbook_page import Block, is_what_the_page_says, sections
from tests.suite.running import HOUSE, RunningSuite

# Incidents in seconds, all of them from one address.
SETTINGS = {
    "WEBHOOKS_DELIVERY_ATTEMPTS": "2",
    "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.05",
    "WEBHOOKS_UNSIGNED_PER_15_MINUTES": "0",
}
# What changes nothing and may be asked again.
CHANGES = re.compile(r"--apply|^(UPDATE|BEGIN)\b|(Replay|Requeue|Discard|Adjust)", re.MULTILINE)
LOOKS_AGAIN_SECONDS = 10.0
WELL, WANTS_A_PERSON = 0, 3

pytestmark = pytest.mark.skipif(
    not (HOUSE / ".venv" / ".ok").exists(), reason="the page types .venv/bin, which make setup makes"
)


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
        if suite.runtime:
            webhooks.answers_again(Operator(suite))
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
        customers.a_missed_escalation,
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
    "Runbook 6: a past-due tenant was not put on free": (
        customers.a_first_customer,
        customers.a_missed_escalation,
    ),
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
        assert operator.status in ({WELL} if CHANGES.search(block.typed) else {WELL, WANTS_A_PERSON})


async def test_the_calls_by_hand_of_the_operations_page_are_answered(operator: Operator) -> None:
    """What has no command of its own; each change of it leaves its line in the audit log."""
    await operator.lives_through(customers.an_edited_balance)
    webhooks.answers_again(operator)
    page = (HOUSE / "docs" / "operations.md").read_text()
    section = page.split("\n## Calls by hand\n")[1].split("\n## ")[0]
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL))

    told = operator.types("sh", script, "set -e")

    assert operator.status == WELL, told
    assert told.count("{\n") >= script.count("T-1") + script.count("T-2"), told
    done = operator.rows(
        "SELECT action FROM billing_audit_log WHERE actor_id = 'asha'"
        " AND metadata ->> 'reason' LIKE 'T-1:%%' AND tenant_id = %s",
        customers.EDITED,
    )
    assert {action for (action,) in done} == {"freeze_account", "unfreeze_account", "adjust_credits"}
