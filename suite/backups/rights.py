"""A database's schemas as lines of text: tables, rules, and above all who may do what, to compare two of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from suite.backups.server import Server
from suite.migrate import SCHEMAS, migrate

# Each answers (what, how it is, who may do what with it).
STATEMENTS = (
    """SELECT 'schema ' || nspname, nspowner::regrole::text, coalesce(nspacl, acldefault('n', nspowner))::text[]
    FROM pg_namespace WHERE nspname = ANY(%(schemas)s)""",
    """SELECT 'table ' || relnamespace::regnamespace || '.' || relname,
        concat_ws(' ', relkind, relowner::regrole, CASE WHEN relrowsecurity THEN 'row security' END,
            CASE WHEN relforcerowsecurity THEN 'forced' END, array_to_string(reloptions, ',')),
        coalesce(relacl, acldefault('r', relowner))::text[]
    FROM pg_class WHERE relnamespace::regnamespace::text = ANY(%(schemas)s) AND relkind IN ('r', 'p', 'v', 'm', 'S')""",
    """SELECT 'column ' || attrelid::regclass || '.' || attname,
        concat_ws(' ', format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'not null' END, attidentity,
            attgenerated, pg_get_expr(adbin, adrelid)),
        attacl::text[]
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
    WHERE relnamespace::regnamespace::text = ANY(%(schemas)s) AND attnum > 0 AND NOT attisdropped
        AND relkind IN ('r', 'p', 'v', 'm')""",
    """SELECT 'constraint ' || conrelid::regclass || '.' || conname, pg_get_constraintdef(oid), NULL
    FROM pg_constraint WHERE connamespace::regnamespace::text = ANY(%(schemas)s) AND conrelid <> 0""",
    """SELECT 'index ' || schemaname || '.' || indexname, indexdef, NULL
    FROM pg_indexes WHERE schemaname = ANY(%(schemas)s)""",
    """SELECT 'policy ' || schemaname || '.' || tablename || '.' || policyname,
        concat_ws(' ', permissive, roles, cmd, qual, with_check), NULL
    FROM pg_policies WHERE schemaname = ANY(%(schemas)s)""",
    """SELECT 'default rights ' || defaclnamespace::regnamespace || ' ' || defaclobjtype::text, defaclrole::regrole::text,
        defaclacl::text[]
    FROM pg_default_acl WHERE defaclnamespace::regnamespace::text = ANY(%(schemas)s)""",
    """SELECT 'type ' || oid::regtype, concat_ws(' ', typowner::regrole,
            (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)),
        coalesce(typacl, acldefault('T', typowner))::text[]
    FROM pg_type t WHERE typnamespace::regnamespace::text = ANY(%(schemas)s) AND typtype IN ('e', 'd')""",
    """SELECT 'function ' || oid::regprocedure, concat_ws(' ', proowner::regrole, md5(prosrc)),
        coalesce(proacl, acldefault('f', proowner))::text[]
    FROM pg_proc WHERE pronamespace::regnamespace::text = ANY(%(schemas)s)""",
    """SELECT 'trigger ' || tgrelid::regclass || '.' || tgname, pg_get_triggerdef(t.oid), NULL
    FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
    WHERE relnamespace::regnamespace::text = ANY(%(schemas)s) AND NOT tgisinternal""",
)


def described(server: Server) -> dict[str, str]:
    """Every object of our schemas: how it is, and who may do what with it."""
    schemas = {"schemas": [schema.name for schema in SCHEMAS]}
    with server.connect() as db:
        # Names come out in full only where no search path shortens them.
        db.execute("SET search_path = pg_catalog")
        rows = [row for statement in STATEMENTS for row in db.execute(statement, schemas).fetchall()]
    return {what: f"{how} {' '.join(sorted(rights or ()))}".strip() for what, how, rights in rows}


def differences(server: Server) -> list[str] | None:
    """How our schemas are not as in a database migrated from nothing beside it; None if it may make no database."""
    try:
        with _fresh(server) as other:
            expected = described(other)
    except psycopg.errors.InsufficientPrivilege:
        return None
    found = described(server)
    return [
        f"{what}: {found.get(what, 'is not there')}; in a fresh database: {expected.get(what, 'is not there')}"
        for what in sorted(expected.keys() | found.keys())
        if expected.get(what) != found.get(what)
    ]


@contextmanager
def _fresh(server: Server) -> Iterator[Server]:
    other = server.in_database(f"billing_fresh_{os.getpid()}")
    name = sql.Identifier(other.database)
    with server.connect() as db:
        db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        try:
            migrate(other.url(), {})
            yield other
        finally:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
