"""Limits as they are stored, and everything that decisions about many of them need, in one statement."""

import functools
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.ledger.rules.limits import Limit, LimitState

LimitKey = tuple[str, str]  # tenant and limit: ("acme", "blog.posts")

# Outside a transaction block now() is the moment at which the statement arrived, before its snapshot was taken: what
# was committed by then is seen. Lateral behind OFFSET 0 fixes the plan: one index probe for each that is asked.
STATES = """
SELECT asked.tenant_id, asked.limit_key, a.entitlements_version, s.enabled, s.stored, u.used, g.expires_at,
       now() + make_interval(secs => %s)
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS asked (tenant_id, limit_key, service_code, key)
CROSS JOIN LATERAL (
    SELECT entitlements_version FROM tenant_credits
    WHERE tenant_id = asked.tenant_id AND tenant_id = ANY(%s) OFFSET 0) a
LEFT JOIN LATERAL (
    SELECT enabled, limits ->> asked.key AS stored FROM tenant_services
    WHERE tenant_id = asked.tenant_id AND service_code = asked.service_code AND tenant_id = ANY(%s) OFFSET 0) s ON true
LEFT JOIN LATERAL (
    SELECT used FROM tenant_usage
    WHERE tenant_id = asked.tenant_id AND limit_key = asked.limit_key AND tenant_id = ANY(%s) OFFSET 0) u ON true
LEFT JOIN LATERAL (
    SELECT expires_at FROM grace_periods
    WHERE tenant_id = asked.tenant_id AND limit_key = asked.limit_key AND tenant_id = ANY(%s) OFFSET 0) g ON true"""


def values_of(asked: Sequence[LimitKey], offset: timedelta) -> list[Any]:
    """What STATES is asked with."""
    parts = [limit_key.partition(".") for _, limit_key in asked]
    tenants = sorted({tenant_id for tenant_id, _ in asked})
    return [
        offset.total_seconds(),
        [tenant_id for tenant_id, _ in asked],
        [limit_key for _, limit_key in asked],
        [service_code for service_code, _, _ in parts],
        [key for _, _, key in parts],
        *[tenants] * 4,
    ]


async def find_rows(
    connection: AsyncConnection[TupleRow], asked: Sequence[LimitKey], offset: timedelta
) -> list[TupleRow]:
    """Rows of STATES, all of one moment; tenants without an account are absent."""
    cursor = await connection.execute(STATES, values_of(asked, offset), prepare=True, binary=True)
    return await cursor.fetchall()


def state_of(row: TupleRow) -> tuple[LimitState, datetime]:
    """A row of STATES, and its moment. `limit` is absent where the plan has none."""
    _, limit_key, version, enabled, stored, used, grace_expires_at, as_of = row
    state = LimitState(
        limit_key=limit_key,
        enabled=bool(enabled),
        limit=None if stored is None else limit_of(limit_key.partition(".")[2], stored),
        used=used or 0,
        counted=used is not None,
        grace_expires_at=grace_expires_at,
        entitlements_version=version,
    )
    return state, as_of


@functools.lru_cache(maxsize=4096)
def limit_of(key: str, stored: str) -> Limit:
    """A limit from its JSON; tenants of one plan share it."""
    return from_json(key, json.loads(stored))


def to_json(limit: Limit) -> dict[str, Any]:
    """`limit` null: no ceiling. Operators read this column."""
    stored: dict[str, Any] = {"limit": limit.value, "kind": limit.kind}
    if limit.grace_seconds:
        stored["graceSeconds"] = limit.grace_seconds
    if limit.addon:
        stored["addon"] = limit.addon
    return stored


def from_json(key: str, stored: dict[str, Any]) -> Limit:
    """The limit that `to_json` stored."""
    return Limit(
        key=key,
        value=stored["limit"],
        kind=stored["kind"],
        grace_seconds=stored.get("graceSeconds", 0),
        addon=stored.get("addon", ""),
    )
