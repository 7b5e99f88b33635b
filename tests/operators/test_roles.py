"""Who may write what, read from the catalogue and then tried: the fences that no code can forget."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database
from tests.operators.conftest import ROOMS, SCHEMAS

READERS = ("billing_operator", "billing_readonly")
LOGINS = (*(f"{room}_rw" for room in ROOMS), *READERS)
WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
LINES = ("credit_entries", "credit_transactions")
Denied = psycopg.errors.InsufficientPrivilege

MAY_CORRECT = {
    *(("ledger", "tenant_credits", column) for column in ("balance",)),
    *(("subscriptions", "billing_reconciliation_queue", column) for column in ("completed_at", "last_error")),
    *(("ops", "billing_integrity_reports", column) for column in ("resolved_at", "resolved_by")),
    *(("subscriptions", "subscriptions", column) for column in ("plan_id", "updated_at")),
}


@cache
def _tables(admin_url: str) -> tuple[tuple[str, str], ...]:
    with psycopg.connect(admin_url) as db:
        found = db.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY(%s) ORDER BY 1, 2",
            [list(SCHEMAS)],
        ).fetchall()
    return tuple((schema, table) for schema, table in found)


@pytest.fixture
def tables(database: Database) -> tuple[tuple[str, str], ...]:
    """Every table of ours: (schema, name)."""
    found = _tables(database.admin_url)
    assert {schema for schema, _ in found} == set(SCHEMAS)
    assert len(found) > 40
    return found


@pytest.fixture
def admin(database: Database) -> Iterator[psycopg.Connection]:
    """The administrator, in a transaction that leaves nothing behind."""
    with psycopg.connect(database.admin_url) as db:
        yield db
        db.rollback()


def writable(db: psycopg.Connection, role: str, schema: str, table: str) -> set[str]:
    """The writes that the catalogue allows; a single column is enough."""
    name = f'"{schema}"."{table}"'
    row = db.execute(
        "SELECT has_any_column_privilege(%(role)s, %(name)s, 'INSERT'),"
        " has_any_column_privilege(%(role)s, %(name)s, 'UPDATE'),"
        " has_table_privilege(%(role)s, %(name)s, 'DELETE'),"
        " has_table_privilege(%(role)s, %(name)s, 'TRUNCATE')",
        {"role": role, "name": name},
    ).fetchone()
    assert row is not None
    return {privilege for privilege, allowed in zip(WRITES, row, strict=True) if allowed}


def attempts(db: psycopg.Connection, schema: str, table: str) -> dict[str, sql.Composed]:
    """One write of each kind, in need of no other privilege than its own."""
    found = db.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass"
        " AND attnum > 0 AND NOT attisdropped AND attidentity = '' ORDER BY attnum",
        [schema, table],
    ).fetchall()
    columns = [row[0] for row in found]
    allowed = {column for each, name, column in MAY_CORRECT if (each, name) == (schema, table)}
    column = next(name for name in columns if name not in allowed and not name.startswith("pending_"))
    names = {"table": sql.Identifier(schema, table), "column": sql.Identifier(column)}
    statements = {
        "INSERT": "INSERT INTO {table} DEFAULT VALUES",
        "UPDATE": "UPDATE {table} SET {column} = DEFAULT WHERE false",
        "DELETE": "DELETE FROM {table} WHERE false",
        "TRUNCATE": "TRUNCATE {table}",
    }
    return {kind: sql.SQL(text).format(**names) for kind, text in statements.items()}


def refused(db: psycopg.Connection, statement: Any) -> bool:
    """Whether the database denies it; nothing of it stays. Any other error came after the fence."""
    try:
        with db.transaction(force_rollback=True):
            db.execute(statement)
    except Denied:
        return True
    except psycopg.Error:
        return False
    return False


def test_an_operator_corrects_the_named_columns_and_no_others(
    admin: psycopg.Connection, tables: tuple[tuple[str, str], ...]
) -> None:
    allowed = admin.execute(
        "SELECT n.nspname, c.relname, a.attname FROM pg_attribute a"
        " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0"
        " AND NOT a.attisdropped AND has_column_privilege('billing_operator', c.oid, a.attnum, 'UPDATE')",
        [list(SCHEMAS)],
    ).fetchall()
    pending = admin.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'subscriptions'"
        " AND table_name = 'subscriptions' AND column_name LIKE 'pending\\_%'"
    ).fetchall()

    assert len(pending) >= 3
    assert set(allowed) == MAY_CORRECT | {("subscriptions", "subscriptions", column) for (column,) in pending}
    beyond = {
        table: writes
        for schema, table in tables
        if (writes := writable(admin, "billing_operator", schema, table) - {"UPDATE"})
    }
    assert beyond == {}


@pytest.mark.parametrize("role", READERS)
def test_readers_see_every_table_and_change_none(
    database: Database, admin: psycopg.Connection, tables: tuple[tuple[str, str], ...], role: str
) -> None:
    let_through = []
    with psycopg.connect(database.url(role)) as db:
        for schema, table in tables:
            db.execute(sql.SQL("SELECT * FROM {} LIMIT 1").format(sql.Identifier(schema, table)))
            let_through += [
                f"{kind} {schema}.{table}"
                for kind, statement in attempts(admin, schema, table).items()
                if not refused(db, statement)
            ]

    assert let_through == []


def test_analytics_has_no_privilege_to_write_anywhere(
    admin: psycopg.Connection, tables: tuple[tuple[str, str], ...]
) -> None:
    for schema, table in tables:
        assert writable(admin, "billing_readonly", schema, table) == set(), f"{schema}.{table}"


def test_unqualified_names_mean_one_table_for_those_who_read_all(
    database: Database, tables: tuple[tuple[str, str], ...]
) -> None:
    names = [table for _, table in tables if table != "alembic_version"]
    assert sorted(set(names)) == sorted(names), "a name in two rooms would hide one of them"
    for role in READERS:
        with psycopg.connect(database.url(role)) as db:
            [path] = db.execute("SHOW search_path").fetchone() or ("",)
        assert path.replace('"', "") == "subscriptions, ledger, webhooks, scheduler, ops"


@pytest.mark.parametrize("role", [f"{room}_rw" for room in ROOMS])
def test_a_room_writes_no_table_of_another(
    database: Database, admin: psycopg.Connection, tables: tuple[tuple[str, str], ...], role: str
) -> None:
    others = [(schema, table) for schema, table in tables if schema not in (role.removesuffix("_rw"), "ops")]
    assert len({schema for schema, _ in others}) == len(ROOMS) - 1

    allowed, let_through, read = {}, [], []
    with psycopg.connect(database.url(role)) as db:
        for schema, table in others:
            if writes := writable(admin, role, schema, table):
                allowed[f"{schema}.{table}"] = writes
            let_through += [
                f"{kind} {schema}.{table}"
                for kind, statement in attempts(admin, schema, table).items()
                if not refused(db, statement)
            ]
            if not refused(db, sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(schema, table))):
                read.append(f"{schema}.{table}")

    assert allowed == {}
    assert let_through == []
    assert read == [], "rooms never read another room's tables"


def test_a_room_owns_nothing_and_empties_nothing(
    admin: psycopg.Connection, tables: tuple[tuple[str, str], ...]
) -> None:
    for schema, table in tables:
        for role in LOGINS:
            assert "TRUNCATE" not in writable(admin, role, schema, table), f"{role}, {schema}.{table}"
    powers = admin.execute(
        "SELECT r.rolname, o.rolname FROM pg_roles r, pg_roles o"
        " WHERE r.rolname = ANY(%s) AND o.rolname LIKE '%%\\_owner' AND pg_has_role(r.oid, o.oid, 'MEMBER')",
        [list(LOGINS)],
    ).fetchall()
    above = admin.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
        " AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication OR NOT rolcanlogin)",
        [list(LOGINS)],
    ).fetchall()
    makers = admin.execute(
        "SELECT r.rolname, n.nspname FROM pg_roles r, pg_namespace n WHERE r.rolname = ANY(%s)"
        " AND n.nspname = ANY(%s) AND has_schema_privilege(r.oid, n.oid, 'CREATE')",
        [list(LOGINS), [*SCHEMAS, "public"]],
    ).fetchall()
    hooks = admin.execute(
        "SELECT r.rolname, c.relname FROM pg_roles r, pg_class c WHERE r.rolname = ANY(%s)"
        " AND c.relnamespace::regnamespace::text = ANY(%s) AND c.relkind = 'r'"
        " AND has_table_privilege(r.oid, c.oid, 'TRIGGER, REFERENCES')",
        [list(LOGINS), list(SCHEMAS)],
    ).fetchall()
    assert (powers, above, makers, hooks) == ([], [], [], [])


@pytest.mark.parametrize("table", LINES)
def test_nobody_changes_a_line_of_the_ledger(
    database: Database, admin: psycopg.Connection, table: str
) -> None:
    roles = admin.execute(
        "SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT rolsuper OR rolname LIKE '%%\\_owner'"
    ).fetchall()
    assert {*LOGINS, "ledger_owner"} <= {role for (role,) in roles}

    may_add = set()
    for (role,) in roles:
        writes = writable(admin, role, "ledger", table)
        assert writes <= {"INSERT"}, f"{role} may {writes}"
        may_add |= {role} if writes else set()
    assert may_add == {"ledger_rw", "ledger_owner"}

    kinds = attempts(admin, "ledger", table)
    adding = kinds.pop("INSERT")
    with psycopg.connect(database.url("ledger_rw")) as db:
        assert not refused(db, adding), "a fence that keeps everybody out proves nothing"
    for role in LOGINS:
        with psycopg.connect(database.url(role)) as db:
            assert [kind for kind, statement in kinds.items() if not refused(db, statement)] == [], role
    admin.execute("SET ROLE ledger_owner")
    assert [kind for kind, statement in kinds.items() if not refused(admin, statement)] == []


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_table_that_a_later_migration_makes_stands_behind_the_same_fences(
    admin: psycopg.Connection, schema: str
) -> None:
    admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(f"{schema}_owner")))
    admin.execute(sql.SQL("CREATE TABLE {} (id text)").format(sql.Identifier(schema, "of_the_future")))
    admin.execute("RESET ROLE")

    may_write = {role: writable(admin, role, schema, "of_the_future") for role in LOGINS}
    readers = admin.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
        " AND has_table_privilege(oid, %s, 'SELECT') AND has_schema_privilege(oid, %s, 'USAGE')",
        [list(LOGINS), f"{schema}.of_the_future", schema],
    ).fetchall()

    own = {f"{room}_rw" for room in ROOMS} if schema == "ops" else {f"{schema}_rw"}
    assert may_write == {role: {"INSERT"} if role in own else set() for role in LOGINS}
    assert {role for (role,) in readers} == own | set(READERS)


def test_a_room_adds_to_the_shared_schema_and_rewrites_nothing_there(admin: psycopg.Connection) -> None:
    append, mend = {"INSERT"}, {"INSERT", "UPDATE"}
    expected = {
        "billing_audit_log": append,
        "billing_signature_failures": append | {"DELETE"},
        "billing_integrity_reports": mend,
        "rate_limit_buckets": mend | {"DELETE"},
        "alembic_version": set(),
    }
    for role in (f"{room}_rw" for room in ROOMS):
        assert {table: writable(admin, role, "ops", table) for table in expected} == expected, role


@pytest.mark.parametrize("schema", SCHEMAS)
def test_no_service_writes_the_version_of_its_schema(admin: psycopg.Connection, schema: str) -> None:
    for role in LOGINS:
        assert writable(admin, role, schema, "alembic_version") == set(), role
