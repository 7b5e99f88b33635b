"""PostgreSQL for rooms: one engine, explicit transactions, and a guard against calls made inside one."""

import asyncio
import contextlib
import contextvars
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared import errors

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside_transaction", default=False)


def create_engine(url: str, *, application_name: str, pool_size: int = 8) -> AsyncEngine:
    """An engine whose sessions give up on locks, statements and idling, so that nobody waits for ever."""
    return create_async_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=2.0,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,  # a failed statement is logged; the values in it may be anybody's
        connect_args={
            "application_name": application_name,
            "connect_timeout": 5,
            # A server whose machine vanished sends nothing, not even an end: without these a write waits for hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "options": session_options(),
        },
    )


def session_options() -> str:
    """Server-side limits of every session of a room; the last ones find out that its machine is gone."""
    return (
        "-c timezone=UTC -c statement_timeout=15s -c lock_timeout=5s"
        " -c idle_in_transaction_session_timeout=15s -c client_connection_check_interval=2s"
        " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    )


def cut(connection: psycopg.AsyncConnection[Any]) -> None:
    """Ends a connection at this side at once; whoever waits for it learns that it is lost."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as link,
    ):
        link.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, *, cut_after_seconds: float | None = None
) -> AsyncIterator[AsyncConnection]:
    """One READ COMMITTED transaction: committed at the end of the block, rolled back by any exception.

    Network calls made inside it fail loudly (`assert_no_transaction`): an effect elsewhere is a row here first.
    A connection that brings no answer can swallow even the COMMIT's: with `cut_after_seconds` nobody waits longer.
    """
    if _inside.get():
        raise AssertionError("a transaction inside a transaction: the inner one would commit on its own")
    alarm: asyncio.TimerHandle | None = None
    try:
        async with engine.begin() as db:
            if cut_after_seconds is not None:
                driver: Any = (await db.get_raw_connection()).driver_connection
                alarm = asyncio.get_running_loop().call_later(cut_after_seconds, cut, driver)
            token = _inside.set(True)
            try:
                yield db
            finally:
                _inside.reset(token)
    finally:
        if alarm is not None:
            alarm.cancel()


def assert_no_transaction(what: str) -> None:
    """Called first by everything that leaves the process."""
    if _inside.get():
        raise AssertionError(f"{what} inside a transaction: write a task row and call after the commit")


def lost_race(error: IntegrityError, constraint: str) -> bool:
    """Whether a unique constraint, by name, was what refused the write."""
    diagnostics = getattr(error.orig, "diag", None)
    return getattr(diagnostics, "constraint_name", None) == constraint


def as_billing_error(error: DBAPIError) -> errors.BillingError:
    """What a database failure means to a caller; details stay in the log.

    Sources: PostgreSQL Appendix A. Only failures that surely rolled back are definite.
    """
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    if sqlstate in {"40001", "40P01", "55P03"}:
        return errors.Aborted("another change was in the way; try again")
    if isinstance(error.orig, psycopg.DataError):
        # The driver itself refused a value: there is no SQLSTATE, and asking again will never do.
        return errors.Internal("internal error")
    if error.connection_invalidated or sqlstate[:2] in {"", "08", "53", "57", "58"}:
        return errors.Unavailable("the database did not answer; ask again with the same key")
    return errors.Internal("internal error")


async def ping(engine: AsyncEngine) -> None:
    """Raises unless the database answers: what a room's health follows."""
    async with engine.connect() as db:
        await db.execute(text("SELECT 1"))
