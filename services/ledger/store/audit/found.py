"""Rows of checks as findings, and the snapshot that checks share."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.ledger.rules.findings import Found


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A read-only transaction in which every statement sees the same moment."""
    async with engine.connect() as db:
        await db.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with db.begin():
            # A sum over one tenant's whole history may take longer than any caller's statement should.
            await db.execute(text("SET LOCAL statement_timeout = '60s'"))
            yield db


async def run(db: AsyncConnection, checks: Iterable[str], values: Mapping[str, Any]) -> list[Found]:
    """What the checks found, in their order."""
    found = []
    for check in checks:
        found += [Found(row[0], row[1], row[2]) for row in await db.execute(text(check), values)]
    return found
