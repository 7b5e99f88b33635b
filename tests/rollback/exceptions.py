"""Tests of the previous release that need not hold on a newer schema, each with its reason."""

from __future__ import annotations

_EQUAL = (
    "compares the migrated schema with the tables that the previous release declares: whatever a newer migration"
    " adds is a difference, and no harm as long as the previous release's inserts need not name it"
)
_FIRST = (
    "asserts that what is applied to a database of the first release begins with subscriptions:0002; newer migrations"
    " of rooms that come before it are applied first, and the assertion is all that fails"
)

EXCEPTIONS: dict[str, str] = {
    "tests/ledger/test_store.py::test_the_tables_that_the_code_declares_are_those_that_migrations_make": _EQUAL,
    "tests/scheduler/test_store.py::test_tables_match_the_migrations": _EQUAL,
    "tests/subscriptions/test_tables.py::test_tables_are_what_the_migrations_make": _EQUAL,
    "tests/subscriptions/test_previous_release.py::test_a_dripping_year_of_the_first_release_gets_its_months": _FIRST,
    "tests/subscriptions/test_previous_release.py::test_an_upgrade_takes_back_what_the_first_release_granted": _FIRST,
    "tests/webhooks/test_schema.py::test_the_tables_match_the_migrations": _EQUAL,
}
