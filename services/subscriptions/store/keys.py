"""First answers, kept under their idempotency keys."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.subscriptions import tables
from services.subscriptions.rules.requests import assert_same

keys = tables.idempotency_keys


async def find_answer(
    db: AsyncConnection, *, tenant_id: str, method: str, key: str, request: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The first answer under this key; refuses when it was given to another request."""
    row = (
        await db.execute(
            select(keys.c.fingerprint, keys.c.response).where(
                keys.c.tenant_id == tenant_id, keys.c.method == method, keys.c.key == key
            )
        )
    ).one_or_none()
    if row is None:
        return None
    assert_same(method, row.fingerprint, request)
    answer: dict[str, Any] = json.loads(row.response)
    return answer


async def insert_answer(
    db: AsyncConnection,
    *,
    tenant_id: str,
    method: str,
    key: str,
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
) -> None:
    """Keep the first answer, in the transaction of its effect."""
    await db.execute(
        insert(keys).values(
            tenant_id=tenant_id,
            method=method,
            key=key,
            fingerprint=dict(request),
            response=json.dumps(answer).encode(),
        )
    )


async def delete_old(db: AsyncConnection, before: datetime, *, dry_run: bool, limit: int) -> int:
    """Delete answers that nobody will ask for again."""
    old = (
        select(keys.c.tenant_id, keys.c.method, keys.c.key)
        .where(keys.c.created_at < before)
        .limit(limit)
        .subquery()
    )
    if dry_run:
        return await db.scalar(select(func.count()).select_from(old)) or 0
    result = await db.execute(
        delete(keys).where(
            keys.c.tenant_id == old.c.tenant_id, keys.c.method == old.c.method, keys.c.key == old.c.key
        )
    )
    return result.rowcount
