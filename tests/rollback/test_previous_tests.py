"""A part of the previous release's tests on this release's schema; `make rollback-check` runs them all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.rollback import previous
from tests.rollback.exceptions import EXCEPTIONS
from tests.suite.running import HOUSE

# What writes and reads most of the tables: the ledger's calls, payments told of, invoices, the inbox, the jobs.
PART = (
    "tests/ledger/test_rpc.py",
    "tests/ledger/test_holds.py",
    "tests/ledger/test_findings.py",
    "tests/subscriptions/test_events.py",
    "tests/subscriptions/test_invoices.py",
    "tests/webhooks/test_accept.py",
    "tests/scheduler/test_store.py",
)

_missing = previous.why_not(previous.release())
pytestmark = pytest.mark.skipif(_missing is not None, reason=str(_missing))


@pytest.mark.timeout(600)
def test_the_previous_releases_tests_pass_on_this_schema() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.rollback", "-n", "0", *PART],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stdout[-6000:] + told.stderr[-2000:]
    assert " passed" in told.stdout


@pytest.mark.parametrize("test", EXCEPTIONS)
def test_an_exception_has_a_reason_and_names_a_test(test: str) -> None:
    file, _, name = test.partition("::")
    assert len(EXCEPTIONS[test].split()) > 10
    assert name.partition("[")[0] in previous.text(previous.release(), file)
