"""`make rollback-check`: the previous release's code and tests, on the schema that this checkout migrates."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from suite import processes
from tests.rollback import previous
from tests.rollback.exceptions import EXCEPTIONS

TESTS = ("tests/ledger", "tests/subscriptions", "tests/webhooks", "tests/scheduler")


def main(tests: list[str]) -> int:
    """The status of the previous release's pytest; what it prints goes where ours does."""
    commit = previous.release()
    if reason := previous.why_not(commit):
        print(f"Cannot check a rollback: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="billing-previous-") as folder:
        house = previous.unpack(commit, Path(folder) / "house")
        print(f"The tests of {commit[:12]} on the schema of this checkout, but for:")
        for test, reason in EXCEPTIONS.items():
            print(f"  {test}: {reason}")
        deselected = [argument for test in EXCEPTIONS for argument in ("--deselect", test)]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *deselected, *(tests or TESTS)],
            cwd=house,
            env=previous.among_its_tests(house),
            check=False,
            preexec_fn=processes.die_with_parent(signal.SIGTERM),
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
