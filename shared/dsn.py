"""Where a database is, as a setting says it."""

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

NO_ADDRESS = "it is not a URL of PostgreSQL"

_HOSTS = re.compile(r"[A-Za-z0-9._:,/%-]*")
_PORTS = re.compile(r"[0-9,]*")


def address_flaw(database_url: str) -> str | None:
    """Why this cannot be where a database is, in words that quote none of it; None if it can.

    Checked before the driver reads it: of a password with `@`, `:` or `/` it takes a part for the host or the port,
    and then says so.
    """
    try:
        parts = conninfo_to_dict(database_url)
    except psycopg.Error:
        return NO_ADDRESS
    host, port, name = (str(parts.get(each) or "") for each in ("host", "port", "dbname"))
    if not _HOSTS.fullmatch(host) or not _PORTS.fullmatch(port) or "@" in name:
        return f"{NO_ADDRESS}: write what is special in its password as %40 for @, %3A for :, %2F for /"
    return None
