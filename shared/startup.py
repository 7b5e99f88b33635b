"""What every room checks before it serves; each refusal is one sentence on the way out, and never shows a secret."""

import re
import resource
from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from shared import migrations

EMBEDDED_CLUSTER_NAME = "billing-embedded"
NOBODY: Mapping[str, str] = MappingProxyType({})

_CONNECT_SECONDS = 2
_NO_ADDRESS = "it is not a URL of PostgreSQL"
_HOSTS = re.compile(r"[A-Za-z0-9._:,/%-]*")
_PORTS = re.compile(r"[0-9,]*")


def check(
    database_url: str, schema: migrations.Schema, *, test_clock: bool, outsiders: Mapping[str, str] = NOBODY
) -> None:
    """Ends the start-up unless the database answers, its schema is current, and no moved clock meets real money.

    `outsiders`: settings that name where this room meets real money, and their values.
    """
    _leave_no_core()
    setting = f"{schema.name.upper()}_DATABASE_URL"
    if wrong := address_flaw(database_url):
        raise SystemExit(f"{setting}: {wrong}")
    try:
        with psycopg.connect(database_url, connect_timeout=_CONNECT_SECONDS) as db:
            cluster = db.execute("SHOW cluster_name").fetchone()
        migrations.assert_current(database_url, schema)
    except migrations.SchemaBehind as behind:
        raise SystemExit(str(behind)) from None
    except psycopg.OperationalError as error:
        raise SystemExit(f"{setting}: the database did not answer: {_first_line(error)}") from None
    except psycopg.Error as error:
        # Without a state it never reached a server: the driver quotes what it cannot read, which may be a password.
        what = _first_line(error) if error.sqlstate else _NO_ADDRESS
        raise SystemExit(f"{setting}: {what}") from None
    if test_clock:
        _refuse_real_money(None if cluster is None else cluster[0], outsiders)


def address_flaw(database_url: str) -> str | None:
    """Why this cannot be where a database is, in words that quote none of it; None if it can.

    Checked before the driver reads it: of a password with `@`, `:` or `/` it takes a part for the host or the port,
    and then says so.
    """
    try:
        parts = conninfo_to_dict(database_url)
    except psycopg.Error:
        return _NO_ADDRESS
    host, port, name = (str(parts.get(each) or "") for each in ("host", "port", "dbname"))
    if not _HOSTS.fullmatch(host) or not _PORTS.fullmatch(port) or "@" in name:
        return f"{_NO_ADDRESS}: write what is special in its password as %40 for @, %3A for :, %2F for /"
    return None


def _leave_no_core() -> None:
    # A core dump is a file with every secret and every body of that moment in it.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _refuse_real_money(cluster_name: str | None, outsiders: Mapping[str, str]) -> None:
    if cluster_name != EMBEDDED_CLUSTER_NAME:
        raise SystemExit("BILLING_TEST_CLOCK is set, but the database is not the embedded one: unset it")
    for name, url in outsiders.items():
        if not _is_loopback(url):
            raise SystemExit(f"BILLING_TEST_CLOCK is set, but {name} is not on this machine: unset one")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_line(error: psycopg.Error) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
