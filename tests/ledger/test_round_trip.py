"""What goes to PostgreSQL in one go arrives as it was, and fails as one."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from services.ledger.store.round_trip import Connection, RoundTrip
from tests.conftest import Database


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with await Connection.connect(database.url("ledger_rw"), autocommit=True) as connection:
        yield connection


async def asked(connection: Connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    trip = RoundTrip(connection)
    place = trip.ask(statement, list(values))
    return (await trip.go())[place]


async def test_every_kind_of_value_arrives_as_it_was(connection: Connection) -> None:
    at = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
    values = ["it's", None, 7, True, 0.25, b"\0\xff", at, timedelta(days=-1, microseconds=1)]

    rows = await asked(
        connection,
        "SELECT %s::text, %s::text, %s::bigint, %s::boolean, %s::float8, %s::bytea, %s::timestamptz, %s::interval",
        *values,
    )

    assert rows == [tuple(values)]


async def test_what_text_cannot_hold_is_refused_and_the_connection_is_as_good_as_before(
    connection: Connection,
) -> None:
    for value in ("a\0b", ["a", "b\0"]):
        with pytest.raises(psycopg.DataError):
            await asked(connection, "SELECT %s::text", value)

    assert await asked(connection, "SELECT 1") == [(1,)]


async def test_one_statement_may_be_asked_twice_in_one_trip(connection: Connection) -> None:
    trip = RoundTrip(connection)
    places = [trip.ask("SELECT %s::text || '!'", [word]) for word in ("a", "b")]
    rows = await trip.go()

    assert [rows[place] for place in places] == [[("a!",)], [("b!",)]]


async def test_answers_stand_where_they_were_asked_and_names_may_repeat(connection: Connection) -> None:
    for _ in range(2):  # the second time everything is prepared
        trip = RoundTrip(connection)
        first = trip.ask("SELECT %(a)s::int + %(b)s::int * %(a)s::int", {"b": 10, "a": 2})
        nothing = trip.ask("SELECT 1 WHERE false")
        last = trip.ask("SELECT unnest(%s::text[])", [["3", "{}"]])
        rows = await trip.go()

        assert (rows[first], rows[nothing], rows[last]) == ([(22,)], [], [("3",), ("{}",)])


async def test_what_follows_a_failure_is_not_done_and_the_failure_is_told(
    connection: Connection, tenant: str
) -> None:
    trip = RoundTrip(connection)
    trip.ask("BEGIN")
    trip.ask("INSERT INTO tenant_usage VALUES (%s, 'a.b', 1, now(), now())", [tenant])
    trip.ask("INSERT INTO tenant_usage VALUES (%s, 'a.b', -1, now(), now())", [tenant])
    trip.ask("COMMIT")

    with pytest.raises(psycopg.errors.CheckViolation):
        await trip.go()

    await connection.execute("ROLLBACK")
    assert await asked(connection, "SELECT used FROM tenant_usage WHERE tenant_id = %s", tenant) == []


async def test_what_was_prepared_before_a_failure_is_prepared_still(connection: Connection) -> None:
    trip = RoundTrip(connection)
    trip.ask("SELECT 'asked before the failure'")
    trip.ask("SELECT 1 / %s::int", [0])
    with pytest.raises(psycopg.errors.DivisionByZero):
        await trip.go()

    assert await asked(connection, "SELECT 'asked before the failure'") == [("asked before the failure",)]
    assert await asked(connection, "SELECT 1 / %s::int", 1) == [(1,)]


async def test_a_statement_that_failed_is_prepared_again(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        await asked(connection, "SELECT 1 FROM no_such_table")
    with pytest.raises(psycopg.errors.UndefinedTable):
        await asked(connection, "SELECT 1 FROM no_such_table")

    assert await asked(connection, "SELECT 5") == [(5,)]


async def test_a_lost_connection_is_told_as_such(connection: Connection, database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as admin:
        await admin.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])

    with pytest.raises(psycopg.OperationalError):
        await asked(connection, "SELECT 1")
