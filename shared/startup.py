"""What every room checks before it serves; each refusal is one sentence on the way out, and never shows a secret."""

import resource
from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType
from urllib.parse import urlsplit

import psycopg

from shared import migrations
from shared.dsn import NO_ADDRESS, address_flaw

EMBEDDED_CLUSTER_NAME = "billing-embedded"
NOBODY: Mapping[str, str] = MappingProxyType({})

_CONNECT_SECONDS = 2


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
        what = _first_line(error) if error.sqlstate else NO_ADDRESS
        raise SystemExit(f"{setting}: {what}") from None
    if test_clock:
        _refuse_real_money(None if cluster is None else cluster[0], outsiders)


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
