"""A room that cannot work says so in one sentence, at once, and shows no secret."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from shared import migrations, startup
from tests.conftest import Database

ROOT = Path(__file__).parents[2]
LEDGER = migrations.Schema("ledger", ROOT / "services/ledger/migrations")
SECRET = "a-secret-that-nobody-may-see"
SECRETS = {name: f"{SECRET}-{name}" for name in ("GATEWAY_SECRET", "OPERATOR_SECRET", "ROOM_SECRET")}


def taken_port() -> socket.socket:
    """A socket that listens on its port until it is closed."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def start(room: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """(how the room ended, seconds it took)"""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{room}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **SECRETS, "RAZORPAY_WEBHOOK_SECRET": SECRET, **settings},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ended, time.monotonic() - began


def assert_one_sentence(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert SECRET not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("room", ["ledger", "subscriptions", "webhooks", "scheduler"])
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someone:{SECRET}@127.0.0.1:1/billing",
        f"postgresql://someone:{SECRET}%zz@127.0.0.1:1/billing",
    ],
    ids=["nobody there", "no url"],
)
def test_a_database_that_cannot_be_reached_is_named(room: str, url: str) -> None:
    ended, seconds = start(
        room, **{f"{room.upper()}_DATABASE_URL": url, "WEBHOOKS_HTTP_LISTEN": "127.0.0.1:0"}
    )

    assert_one_sentence(ended)
    assert f"{room.upper()}_DATABASE_URL" in ended.stderr
    assert seconds < 10  # two on an idle machine


@pytest.mark.parametrize("room", ["ledger", "subscriptions", "webhooks", "scheduler"])
def test_a_schema_that_is_behind_says_what_to_run(room: str, database: Database) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS bare_for_startup")
        admin.execute("CREATE DATABASE bare_for_startup")
    url = database.url(f"{room}_rw").rpartition("/")[0] + "/bare_for_startup"

    ended, _ = start(room, **{f"{room.upper()}_DATABASE_URL": url, "WEBHOOKS_HTTP_LISTEN": "127.0.0.1:0"})

    assert_one_sentence(ended)
    assert "run the migrations" in ended.stderr


def test_a_port_that_is_taken_is_named(database: Database) -> None:
    with taken_port() as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        ended, _ = start("ledger", LEDGER_DATABASE_URL=database.url("ledger_rw"), LEDGER_LISTEN=address)

    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert f"cannot listen on {address}" in ended.stderr


def test_a_moved_clock_meets_neither_another_database_nor_real_money(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.url("ledger_rw")

    startup.check(url, LEDGER, test_clock=True, outsiders={"PROVIDER": "http://127.0.0.1:9/"})
    with pytest.raises(SystemExit, match="PROVIDER is not on this machine"):
        startup.check(url, LEDGER, test_clock=True, outsiders={"PROVIDER": "https://api.example.com"})
    monkeypatch.setattr(startup, "EMBEDDED_CLUSTER_NAME", "another")
    with pytest.raises(SystemExit, match="not the embedded one"):
        startup.check(url, LEDGER, test_clock=True)
    startup.check(url, LEDGER, test_clock=False)
