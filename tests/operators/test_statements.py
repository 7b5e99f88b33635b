"""Nothing in the runbooks goes untried."""

from pathlib import Path

import pytest

from tests.operators.statements import STATEMENTS, filled

TESTS = "\n".join(
    path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name
)


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_is_run_by_a_test(name: str) -> None:
    assert f'"{name}"' in TESTS


def test_a_forgotten_placeholder_is_noticed() -> None:
    with pytest.raises(AssertionError, match="TENANT_ID"):
        filled("runbook_2b")
    with pytest.raises(AssertionError, match="TASK_ID"):
        filled("runbook_2b", TENANT_ID="t", TASK_ID="x")
