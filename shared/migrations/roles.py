"""The roles of a database: who owns a schema, who serves it, who looks at it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

OPERATOR = "billing_operator"
READONLY = "billing_readonly"
READERS = (OPERATOR, READONLY)
# The one schema that several rooms append to. Its `_rw` is a group: every room's role is a member.
SHARED_SCHEMA = "ops"
READERS_SEARCH_PATH = ("subscriptions", "ledger", "webhooks", "scheduler", "ops")
VERSION_TABLE = "alembic_version"


@dataclass(frozen=True)
class Schema:
    """A schema and the folder whose `versions/` holds its migrations."""

    name: str
    path: Path

    @property
    def owner(self) -> str:
        """The role that owns every object and never logs in."""
        return f"{self.name}_owner"

    @property
    def rw(self) -> str:
        """The role of the service, or the group of services for the shared schema."""
        return f"{self.name}_rw"

    @property
    def shared(self) -> bool:
        """True for the schema that every room may append to."""
        return self.name == SHARED_SCHEMA


def quiet(connection: psycopg.Connection) -> None:
    """Keep this session's statements out of the server's log, where the administrator may."""
    for setting, value in (
        ("log_statement", "none"),
        ("log_min_duration_statement", "-1"),
        ("log_min_error_statement", "panic"),
    ):
        try:
            connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
        except psycopg.errors.InsufficientPrivilege:
            pass  # only a superuser may; passwords travel as SCRAM verifiers all the same


def ensure_roles(
    connection: psycopg.Connection, schemas: Sequence[Schema], passwords: Mapping[str, str]
) -> None:
    """Create the roles that are missing; set passwords and search paths of all."""
    is_superuser = connection.info.parameter_status("is_superuser") == "on"
    login_roles = [s.rw for s in schemas if not s.shared] + list(READERS)
    unknown = sorted(set(passwords) - set(login_roles))
    if unknown:
        raise ValueError(f"passwords for roles that do not log in here: {', '.join(unknown)}")
    for role in [s.owner for s in schemas] + [s.rw for s in schemas if s.shared]:
        _create(connection, role, login=False)
    for role in login_roles:
        _create(connection, role, login=True)
    for schema in schemas:
        if not is_superuser:
            # CREATEROLE makes one the administrator of a role, not a member; SET ROLE needs membership.
            _run(connection, "GRANT {} TO CURRENT_USER", schema.owner)
        if not schema.shared:
            _search_path(connection, schema.rw, dict.fromkeys((schema.name, SHARED_SCHEMA)))
            if any(s.shared for s in schemas):
                _run(connection, "GRANT {} TO {}", f"{SHARED_SCHEMA}_rw", schema.rw)
    for role in READERS:
        _search_path(connection, role, READERS_SEARCH_PATH)
    for role, password in passwords.items():
        _set_password(connection, role, password)


def ensure_schema(connection: psycopg.Connection, schema: Schema) -> None:
    """Create the schema for its owner and say what every table in it grants by default."""
    name, owner, rw = schema.name, schema.owner, schema.rw
    exists = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [name]).fetchone()
    if exists is None:
        _run(connection, "CREATE SCHEMA {} AUTHORIZATION {}", name, owner)
    with connection.transaction():
        _run(connection, "SET LOCAL ROLE {}", owner)
        _run(connection, "REVOKE ALL ON SCHEMA {} FROM PUBLIC", name)
        # Before the default privileges, so that a service cannot write the version of its own schema.
        existing = connection.execute("SELECT to_regclass(%s)", [f'"{name}".{VERSION_TABLE}']).fetchone()
        if existing is None or existing[0] is None:
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {}.{} (version_num varchar(32) NOT NULL,"
                    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
                ).format(sql.Identifier(name), sql.Identifier(VERSION_TABLE))
            )
            _run(connection, "REVOKE INSERT ON {}.{} FROM {}", name, VERSION_TABLE, rw)
        for role in (rw, *READERS):
            _run(connection, "GRANT USAGE ON SCHEMA {} TO {}", name, role)
            _run(connection, "GRANT SELECT ON {}.{} TO {}", name, VERSION_TABLE, role)
        _run(
            connection, "ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT, INSERT ON TABLES TO {}", name, rw
        )
        for role in READERS:
            _run(connection, "ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO {}", name, role)


def _create(connection: psycopg.Connection, role: str, *, login: bool) -> None:
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
        return
    try:
        _run(connection, f"CREATE ROLE {{}} {'LOGIN' if login else 'NOLOGIN'}", role)
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        pass  # a runner for another database of the cluster made it, out of reach of our lock


def _search_path(connection: psycopg.Connection, role: str, schemas: Iterable[str]) -> None:
    path = sql.SQL(", ").join(map(sql.Identifier, schemas))
    connection.execute(sql.SQL("ALTER ROLE {} SET search_path = {}").format(sql.Identifier(role), path))


def _set_password(connection: psycopg.Connection, role: str, password: str) -> None:
    # Hashed here: no server log, statistics view or error message can ever show the password.
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
    )


def _run(connection: psycopg.Connection, statement: str, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
