"""Migrations: roles and schemas by any administrator, once however many run, never in the way for long."""

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from shared.migrations import MigrationFailed, Schema, SchemaBehind, assert_current, drift, migrate, pending
from shared.migrations import lock as lock_module

FIRST = """
from alembic import op
revision, down_revision = "0001", None
def upgrade():
    op.execute("CREATE TABLE things (id text PRIMARY KEY, size bigint NOT NULL)")
    op.execute("SELECT pg_sleep(0.3)")
    op.execute("INSERT INTO things VALUES ('made by 0001', 1)")
"""
SECOND = """
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    op.execute("ALTER TABLE things ADD COLUMN colour text")
"""


def url_of(conninfo: str) -> str:
    """Write a conninfo as an SQLAlchemy URL, the form in which settings hold it."""
    parts = conninfo_to_dict(conninfo)
    host, port = parts.get("host", ""), parts.get("port", 5432)
    password = f":{parts['password']}" if "password" in parts else ""
    where = f"?host={host}&port={port}" if str(host).startswith("/") else ""
    address = "" if where else f"{host}:{port}"
    return f"postgresql+psycopg://{parts['user']}{password}@{address}/{parts['dbname']}{where}"


@pytest.fixture
def zoo() -> str:
    """A schema's name, and the beginning of all its roles' names: roles outlive databases."""
    return f"zoo{uuid.uuid4().hex[:8]}"


@pytest.fixture
def admin(database: Any, zoo: str) -> Iterator[str]:
    """An empty database of the test cluster, as an administrator's libpq string."""
    cluster = database.admin_url.replace("+psycopg", "")
    name = f"migrations_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(make_conninfo(cluster, dbname="postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield make_conninfo(cluster, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        roles = connection.execute(
            "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [zoo]
        ).fetchall()
        for (role,) in roles:
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@pytest.fixture
def schema(tmp_path: Path, zoo: str) -> Schema:
    """A schema with one migration, in a folder whose name is hard on configuration files."""
    path = tmp_path / "100% wild room"
    (path / "versions").mkdir(parents=True)
    (path / "versions" / "0001_first.py").write_text(FIRST)
    return Schema(zoo, path)


def test_four_processes_at_once_apply_each_migration_once(admin: str, schema: Schema) -> None:
    (schema.path / "versions" / "0002_second.py").write_text(SECOND)
    program = (
        "import sys; from pathlib import Path; from shared.migrations import Schema, migrate\n"
        "url, name, path, role = sys.argv[1:]\n"
        "print(*migrate(url, schemas=[Schema(name, Path(path))], passwords={role: 'secret'}))"
    )
    arguments = [sys.executable, "-c", program, url_of(admin), schema.name, str(schema.path), schema.rw]
    runners = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = sorted(runner.communicate(timeout=60)[0].strip() for runner in runners)
    assert [runner.returncode for runner in runners] == [0, 0, 0, 0]
    assert answers == ["", "", "", f"{schema.name}:0001 {schema.name}:0002"]
    with psycopg.connect(admin) as connection:
        assert connection.execute(f"SELECT id FROM {schema.name}.things").fetchall() == [("made by 0001",)]


@pytest.mark.parametrize("superuser", [True, False], ids=["superuser", "createrole-administrator"])
def test_either_kind_of_administrator_with_a_hard_password(
    admin: str, schema: Schema, superuser: bool
) -> None:
    boss, password = f"{schema.name}_boss", "p%40@:/%s {}'\"é"
    with psycopg.connect(admin, autocommit=True) as connection:
        powers = sql.SQL("SUPERUSER" if superuser else "CREATEROLE")
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}").format(sql.Identifier(boss), powers, password)
        )
        database_name = sql.Identifier(connection.info.dbname)
        connection.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database_name, sql.Identifier(boss))
        )
        for reader in ("billing_operator", "billing_readonly"):
            connection.execute(
                sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(
                    sql.Identifier(reader), sql.Identifier(boss)
                )
            )
    url = url_of(make_conninfo(admin, user=boss, password=quote(password, safe="")))
    applied = migrate(url, schemas=[schema], passwords={schema.rw: password})
    assert applied == [f"{schema.name}:0001"]
    assert migrate(url, schemas=[schema], passwords={schema.rw: password}) == []
    with psycopg.connect(admin, user=schema.rw, password=password) as service:
        assert service.execute("SELECT size FROM things").fetchone() == (1,), "search_path names the schema"
    with psycopg.connect(admin) as connection:
        stored = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [schema.rw]
        ).fetchone()
    assert stored is not None
    assert stored[0].startswith("SCRAM-SHA-256$")


def test_a_service_may_add_and_read_and_nothing_else(admin: str, schema: Schema) -> None:
    migrate(url_of(admin), schemas=[schema], passwords={})
    may = {}
    with psycopg.connect(admin, autocommit=True) as connection:
        for role in (schema.rw, "billing_operator", "billing_readonly"):
            connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)))
            for statement in (
                "SELECT 1 FROM things",
                "INSERT INTO things VALUES (gen_random_uuid()::text, 2)",
                "UPDATE things SET size = 3",
                "DELETE FROM things",
                "TRUNCATE things",
                "CREATE TABLE mine (id int)",
                "SELECT 1 FROM alembic_version",
                "INSERT INTO alembic_version VALUES ('9999')",
            ):
                connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema.name)))
                try:
                    connection.execute(statement)
                except psycopg.errors.InsufficientPrivilege:
                    continue
                may.setdefault(role, []).append(statement.split(" (")[0][:11])
            connection.execute("RESET SESSION AUTHORIZATION")
    assert may == {
        schema.rw: ["SELECT 1 FR", "INSERT INTO", "SELECT 1 FR"],
        "billing_operator": ["SELECT 1 FR", "SELECT 1 FR"],
        "billing_readonly": ["SELECT 1 FR", "SELECT 1 FR"],
    }


def test_a_room_learns_that_its_schema_is_behind_and_accepts_one_ahead(admin: str, schema: Schema) -> None:
    url = url_of(admin)
    assert pending(url, [schema]) == [f"{schema.name}:0001"]
    with pytest.raises(SchemaBehind, match="is at nothing and lacks"):
        assert_current(url, schema)
    migrate(url, schemas=[schema], passwords={schema.rw: "word"})
    service = url_of(make_conninfo(admin, user=schema.rw, password="word"))
    assert_current(service, schema)
    second = schema.path / "versions" / "0002_second.py"
    second.write_text(SECOND)
    with pytest.raises(SchemaBehind, match=f"is at 0001 and lacks {schema.name}:0002"):
        assert_current(service, schema)
    migrate(url, schemas=[schema], passwords={})
    second.unlink()
    assert_current(service, schema)
    assert migrate(url, schemas=[schema], passwords={}) == [], "an older release leaves a newer schema alone"


def test_a_failing_migration_leaves_nothing_and_the_ones_before_it_stay(admin: str, schema: Schema) -> None:
    broken = schema.path / "versions" / "0002_second.py"
    broken.write_text(SECOND + '    op.execute("SELECT 1 / 0")\n')
    with pytest.raises(Exception, match="division by zero"):
        migrate(url_of(admin), schemas=[schema], passwords={})
    assert pending(url_of(admin), [schema]) == [f"{schema.name}:0002"]
    broken.write_text(SECOND)
    assert migrate(url_of(admin), schemas=[schema], passwords={}) == [f"{schema.name}:0002"]


def test_traffic_never_queues_behind_a_migration_that_waits_for_a_reader(admin: str, schema: Schema) -> None:
    migrate(url_of(admin), schemas=[schema], passwords={schema.rw: "word"})
    (schema.path / "versions" / "0002_second.py").write_text(SECOND)
    applied: list[str] = []
    migration = threading.Thread(
        target=lambda: applied.extend(migrate(url_of(admin), schemas=[schema], passwords={}))
    )
    service = make_conninfo(admin, user=schema.rw, password="word")
    with psycopg.connect(service) as reader, psycopg.connect(service, autocommit=True) as writer:
        reader.execute("SELECT count(*) FROM things")
        migration.start()
        stalls = []
        for number in range(16):
            began = time.monotonic()
            writer.execute("INSERT INTO things (id, size) VALUES (%s, 1)", [f"traffic {number}"])
            stalls.append(time.monotonic() - began)
            time.sleep(0.05)
        assert applied == [], "the reader still holds the table"
        reader.rollback()
        migration.join(timeout=30)
    assert applied == [f"{schema.name}:0002"]
    assert max(stalls) < 3.0


def test_a_lock_that_is_never_freed_ends_with_a_sentence(admin: str, schema: Schema) -> None:
    with psycopg.connect(admin, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock_module.DATABASE_KEY])
        with (
            pytest.raises(MigrationFailed, match="another migration holds the lock"),
            lock_module.cluster_lock(admin, wait_seconds=0.2),
        ):
            pass


def test_drift_names_what_code_and_schema_disagree_on(admin: str, schema: Schema) -> None:
    migrate(url_of(admin), schemas=[schema], passwords={})
    agreeing = MetaData(schema=schema.name)
    Table(
        "things", agreeing, Column("id", Text, primary_key=True), Column("size", BigInteger, nullable=False)
    )
    assert drift(url_of(admin), schema, agreeing) == []
    other = MetaData()
    Table("things", other, Column("id", Text, primary_key=True), Column("weight", BigInteger))
    differences = " ".join(drift(url_of(admin), schema, other))
    assert "weight" in differences
    assert "size" in differences


def test_a_password_for_a_role_that_does_not_exist_is_a_mistake(admin: str, schema: Schema) -> None:
    with pytest.raises(ValueError, match="ledgr_rw"):
        migrate(url_of(admin), schemas=[schema], passwords={"ledgr_rw": "x"})
