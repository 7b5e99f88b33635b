"""A log line tells what happened and where, never with which values."""

import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared import logs
from shared.database import create_engine, transaction
from shared.errors import NotFound
from tests.conftest import Database

PREAMBLE = """
import asyncio, logging
from shared import logs
logs.configure("ledger")
log = logs.get_logger()
"""


def written(program: str, *, ends_with: int = 0) -> tuple[list[dict[str, Any]], str]:
    """What a process logged, line by line, and as it stands."""
    ended = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == ends_with, ended.stderr
    return [json.loads(line) for line in ended.stderr.splitlines()], ended.stderr


def test_an_exception_is_told_with_its_places_and_causes_and_no_values() -> None:
    [line], everything = written(
        """
def inner():
    raise KeyError("can" + "ary")
try:
    try:
        inner()
    except KeyError as cause:
        raise ValueError("can" + "ary") from cause
except ValueError:
    log.exception("failed", tenant_id="acme")
"""
    )
    assert "canary" not in everything.replace(
        '"canary', ""
    )  # the string's own line of code cannot be shown here
    assert line["event"] == "failed"
    assert line["exception"].index("ValueError()") < line["exception"].index("KeyError()")
    assert "in inner" in line["exception"]


def test_what_libraries_say_is_a_line_of_ours_without_values() -> None:
    lines, everything = written(
        """
async def broken():
    raise RuntimeError("can" + "ary")
async def main():
    asyncio.get_running_loop().create_task(broken())
    await asyncio.sleep(0.01)
    import gc; gc.collect()
asyncio.run(main())
logging.getLogger("urllib3").warning("discarding connection: %s", "can" + "ary")
try:
    raise RuntimeError("can" + "ary")
except RuntimeError:
    logging.getLogger("grpc").exception("Unexpected\\nsecond line with can" + "ary")
"""
    )
    assert "canary" not in everything
    assert [(line["logger"], line["event"]) for line in lines] == [
        ("asyncio", "Task exception was never retrieved"),
        ("urllib3", "discarding connection: %s"),
        ("grpc", "Unexpected"),
    ]
    assert "RuntimeError()" in lines[0]["exception"]
    assert {line["room"] for line in lines} == {"ledger"}


def test_a_process_that_ends_by_an_exception_says_so_without_values() -> None:
    [line], everything = written('raise RuntimeError("can" + "ary")', ends_with=1)
    assert (line["event"], line["level"]) == ("crashed", "error")
    assert "canary" not in everything


def test_a_row_that_broke_a_constraint_is_named_by_table_and_constraint(database: Database) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as db, pytest.raises(psycopg.Error) as raised:
        db.execute(
            "INSERT INTO webhooks.webhook_events (id, provider, account_id, mode, body, body_sha256, request_id,"
            " received_at) VALUES ('canary', 'razorpay', 'canary', 'neither', 'canary', 'canary', 'r', now())"
        )
    assert "canary" in str(raised.value)  # which is why it is not logged
    told = logs.described(raised.value)
    assert "canary" not in told.splitlines()[-1]
    assert "code=23514" in told
    assert "table_name=webhook_events" in told
    assert "constraint_name=webhook_events_" in told


async def test_a_line_without_places_says_by_its_code_what_the_database_or_the_system_refused(
    database: Database,
) -> None:
    engine = create_engine(database.url("webhooks_rw"), application_name="test")
    with pytest.raises(DBAPIError) as raised:
        async with transaction(engine) as db:
            await db.execute(text("SELECT 'canary'::integer"))
    await engine.dispose()

    assert logs.brief(raised.value) == "psycopg.errors.InvalidTextRepresentation(code=22P02)"
    assert logs.brief(OSError(24, "canary")) == "OSError(code=EMFILE)"
    assert logs.brief(ConnectionRefusedError()) == "ConnectionRefusedError()"


def test_a_refusal_is_told_by_its_reason() -> None:
    error = NotFound("acme has no such thing", reason="UNKNOWN_TENANT", tenant_id="acme")
    assert logs.described(error) == "shared.errors.NotFound(reason=UNKNOWN_TENANT)"
    assert "hunter2" not in logs.described(ValueError(SecretStr("hunter2").get_secret_value()))


def test_threads_destructors_and_callbacks_are_told_without_values() -> None:
    lines, everything = written(
        """
import gc, threading
class Falling:
    def __del__(self):
        raise RuntimeError("can" + "ary")
def failing(*given):
    raise ValueError("can" + "ary")
thread = threading.Thread(target=failing)
thread.start()
thread.join()
Falling()
gc.collect()
async def main():
    asyncio.get_running_loop().call_soon(failing, "can" + "ary", {"cvv": "can" + "ary"})
    await asyncio.sleep(0.01)
asyncio.run(main())
"""
    )
    assert "canary" not in everything
    assert [line["event"] for line in lines] == [
        "thread_crashed",
        "unraisable",
        "Exception in callback failing",
    ]
    assert all("Error()" in line["exception"] for line in lines)
