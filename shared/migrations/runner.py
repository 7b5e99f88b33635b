"""Brings schemas up to date, and says whether they are."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Connection, MetaData, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from shared.migrations.errors import MigrationFailed, SchemaBehind
from shared.migrations.lock import cluster_lock
from shared.migrations.roles import VERSION_TABLE, Schema, ensure_roles, ensure_schema, quiet

LOCK_WAIT_SECONDS = 120
# Short, because whoever queues behind us waits as well; tried again, because the table will soon be free.
TABLE_LOCK_TIMEOUT = "200ms"
TABLE_LOCK_TRIES = 100


def migrate(admin_url: str, *, schemas: Sequence[Schema], passwords: Mapping[str, str]) -> list[str]:
    """Create roles and schemas, apply what is pending and return it as `<schema>:<revision>`.

    Any number of processes may call it at once. Needs a direct connection (not a transaction pooler) of a
    superuser, or of an administrator with CREATEROLE who may create schemas in the database. What was applied
    stays when a later migration fails: run it again.
    """
    conninfo = _conninfo(admin_url)
    applied: list[str] = []
    with cluster_lock(conninfo, wait_seconds=LOCK_WAIT_SECONDS):
        with psycopg.connect(conninfo, autocommit=True) as admin:
            quiet(admin)
            ensure_roles(admin, schemas, passwords)
            for schema in schemas:
                ensure_schema(admin, schema)
        for schema in schemas:
            applied += _upgrade(conninfo, schema)
    return applied


def pending(admin_url: str, schemas: Sequence[Schema]) -> list[str]:
    """List, as `<schema>:<revision>` in order, what `migrate` would apply."""
    return [revision for schema in schemas for revision in _missing(schema, _version(admin_url, schema))]


def assert_current(url: str, schema: Schema) -> None:
    """Return if the schema has every migration of this code, else raise SchemaBehind with what to do.

    Any role that may read the schema can ask. A schema that is ahead passes: migrations only expand, so that
    the release before still runs on them.
    """
    current = _version(url, schema)
    missing = _missing(schema, current)
    if missing:
        raise SchemaBehind(
            f"schema {schema.name!r} is at {current or 'nothing'} and lacks {', '.join(missing)}; "
            "run the migrations (python -m suite migrate) and start again"
        )


def drift(admin_url: str, schema: Schema, metadata: MetaData) -> list[str]:
    """Say how the migrated schema differs from the tables that the code declares; empty when they agree."""
    unqualified = MetaData()
    for table in metadata.tables.values():
        if table.schema in (None, schema.name):
            table.to_metadata(unqualified, schema=None)  # type: ignore[arg-type]
    with _session(_conninfo(admin_url), schema) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "version_table": VERSION_TABLE,
                "version_table_schema": schema.name,
                "include_schemas": False,
                "include_object": lambda thing, name, kind, reflected, to: name != VERSION_TABLE,
            },
        )
        return [str(difference) for difference in compare_metadata(context, unqualified)]


def _upgrade(conninfo: str, schema: Schema) -> list[str]:
    for attempt in range(1, TABLE_LOCK_TRIES + 1):
        try:
            with _session(conninfo, schema) as connection:
                current = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
                connection.commit()
                todo = _missing(schema, current)
                if todo:
                    command.upgrade(_config(schema, connection), "head")
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
                raise
            if attempt == TABLE_LOCK_TRIES:
                raise MigrationFailed(
                    f"schema {schema.name!r}: a table stayed locked by others through {attempt} tries; "
                    "end the long transaction (pg_stat_activity) and run again"
                ) from error
            time.sleep(min(0.05 * attempt, 0.5))
        else:
            return todo
    return []


@contextmanager
def _session(conninfo: str, schema: Schema) -> Iterator[Connection]:
    def connect() -> psycopg.Connection:
        raw = psycopg.connect(conninfo, autocommit=True)
        quiet(raw)
        raw.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(schema.owner)))
        raw.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema.name)))
        raw.execute("SELECT set_config('lock_timeout', %s, false)", [TABLE_LOCK_TIMEOUT])
        raw.execute("SET statement_timeout = 0")
        raw.autocommit = False
        return raw

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _missing(schema: Schema, current: str | None) -> list[str]:
    scripts = ScriptDirectory.from_config(_config(schema))
    in_order = [script.revision for script in scripts.walk_revisions()][::-1]
    if current is None:
        missing = in_order
    elif current in in_order:
        missing = in_order[in_order.index(current) + 1 :]
    else:
        missing = []  # a newer release was here
    return [f"{schema.name}:{revision}" for revision in missing]


def _config(schema: Schema, connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection, "schema": schema.name})
    for option, value in (
        ("script_location", str(Path(__file__).parent)),
        ("path_separator", "newline"),
        ("version_locations", str(Path(schema.path) / "versions")),
    ):
        config.set_main_option(option, value.replace("%", "%%"))  # ConfigParser interpolates
    return config


def _version(url: str, schema: Schema) -> str | None:
    with psycopg.connect(_conninfo(url), autocommit=True) as connection:
        try:
            row = connection.execute(
                sql.SQL("SELECT version_num FROM {}.{}").format(
                    sql.Identifier(schema.name), sql.Identifier(VERSION_TABLE)
                )
            ).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return None
        return str(row[0]) if row else None


def _conninfo(url: str) -> str:
    """Turn an SQLAlchemy URL into what libpq reads: the same, without the driver."""
    return re.sub(r"^postgres(ql)?\+\w+:", "postgresql:", url)
