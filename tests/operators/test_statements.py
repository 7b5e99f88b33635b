"""Nothing in the runbooks goes untried."""

import re
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Database
from tests.operators.statements import STATEMENTS, filled

HOUSE = Path(__file__).resolve().parents[2]
TESTS = "\n".join(
    path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name
)


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_is_run_by_a_test(name: str) -> None:
    assert f'"{name}"' in TESTS


@pytest.mark.parametrize("name", STATEMENTS)
def test_analytics_may_run_what_looks_and_nothing_that_mends(database: Database, name: str) -> None:
    asked = re.findall(r"<([A-Z_]+)>", STATEMENTS[name])
    statement = filled(name, **dict.fromkeys(asked, "1"))
    with psycopg.connect(database.url("billing_readonly"), autocommit=True) as db:
        if "UPDATE" in statement:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(statement)
        else:
            assert db.execute(statement).description is not None


def test_a_forgotten_placeholder_is_noticed() -> None:
    with pytest.raises(AssertionError, match="TENANT_ID"):
        filled("runbook_2b")
    with pytest.raises(AssertionError, match="TASK_ID"):
        filled("runbook_2b", TENANT_ID="t", TASK_ID="x")


def as_the_page_may_fill_it_in(statement: str) -> str:
    """A pattern: the statement to the letter, with anything short in the place of what an operator fills in."""
    literal = re.split(r"<[A-Z_]+>", statement.strip())
    return r"[^'%\n]{1,40}".join(re.escape(part) for part in literal)


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_runbooks_print_every_statement_as_it_is_written(name: str) -> None:
    page = (HOUSE / "docs" / "runbooks.md").read_text()
    printed = re.findall(r"^```sql\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)

    pattern = as_the_page_may_fill_it_in(STATEMENTS[name])

    assert [each for each in printed if re.fullmatch(pattern, each.strip())]
