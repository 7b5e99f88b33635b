"""Card data, secrets and callers' words are sent everywhere; then everything that the suite said and wrote is searched."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import psycopg
import pytest

from suite.files import Secrets, write_private
from suite.migrate import LOGINS
from tests.conftest import Database
from tests.journeys import canaries as search
from tests.journeys.canaries import Canaries, Hit
from tests.journeys.trespassing import Caller, Heard, Sink, call_every_door, knock, sink
from tests.journeys.upsetting import (
    TENANT,
    admin_url,
    annoy_provider,
    buy_with_a_card_in_the_body,
    killed_in_the_middle,
    knock_once,
    live,
    refusing_tables,
    run_jobs,
)
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

# Meant to hold secrets, and readable by their owner only.
KEPT_SECRET = {"secrets.json", "runtime.json", "postgres/password"}


@dataclass
class Evidence:
    """What was left behind, place by place."""

    canaries: Canaries
    heard: Heard
    needles: dict[bytes, str] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)
    command_lines: dict[str, bytes] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    told_sinks: tuple[Sink, ...] = ()


@pytest.fixture(scope="module")
async def evidence() -> AsyncIterator[Evidence]:
    """A suite of its own whose every secret is a canary, after canaries came through all its doors."""
    canaries = Canaries()
    found = Evidence(canaries, Heard())
    folder = folder_of_secrets(canaries)
    with sink(canaries, "alerts") as alerts, sink(canaries, "notices") as notices:
        suite = RunningSuite(folder, **telling_settings(canaries, alerts, notices))
        try:
            with cores_allowed():
                await asyncio.to_thread(suite.start)
            found.told_sinks = (alerts, notices)
            await drive(suite, found)
            await collect(suite, found)
            await asyncio.to_thread(suite.stop)
            found.logs |= {"postgres.log": (folder / "postgres" / "postgres.log").read_bytes()}
            found.logs |= {"output": suite.log.read_bytes()}
            found.files |= search.files(folder)
            yield found
        finally:
            if suite.process is not None:
                await asyncio.to_thread(suite.stop)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cores_allowed() -> Iterator[None]:
    """Many a machine has them switched off, and then nobody sees who left them on."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def folder_of_secrets(canaries: Canaries) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="billing-canaries-"))
    folder.chmod(0o711)
    write_private(folder / "secrets.json", json.dumps(asdict(secret_secrets(canaries))))
    return folder


def secret_secrets(canaries: Canaries) -> Secrets:
    return Secrets(
        gateway_secret=canaries.secret("gw_"),
        operator_secret=canaries.secret("op_"),
        room_secret=canaries.secret("room_"),
        razorpay_key_id="rzp_test_ABCDEFGHIJKLMN",
        razorpay_key_secret=canaries.secret(),
        razorpay_webhook_secret=canaries.secret(),
        role_passwords={role: canaries.secret() for role in LOGINS},
    )


def telling_settings(canaries: Canaries, alerts: Sink, notices: Sink) -> dict[str, str]:
    more = {
        "shop": {"account_id": "acc_x", "mode": "live", "secrets": [canaries.secret(), canaries.secret()]}
    }
    return {
        "LOG_LEVEL": "debug",
        "RAZORPAY_WEBHOOK_SECRET_PREVIOUS": canaries.secret(),
        "WEBHOOKS_ENDPOINTS": json.dumps(more),
        "WEBHOOKS_DEAD_LETTERS_ALERT": "0",
        "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.05",
        "WEBHOOKS_DELIVERY_LEASE_SECONDS": "12",
        "WEBHOOKS_RECEIVE_SECONDS": "1",
        # So that what strangers claim in X-Forwarded-For is read at all.
        "WEBHOOKS_TRUSTED_PROXIES": "127.0.0.1",
        "BILLING_ALERT_WEBHOOK_URL": alerts.url,
        "BILLING_NOTIFICATION_WEBHOOK_URL": notices.url,
        "BILLING_NOTIFICATION_SECRET": canaries.secret(),
        "ADMIN_CALLS_PER_15_MINUTES": "0",
    }


# -- sending -----------------------------------------------------------------------------------------------


async def drive(suite: RunningSuite, found: Evidence) -> None:
    """Canaries everywhere: first while all is well, then while things break, are killed and come back."""
    async with AsyncExitStack() as stack:
        channels = {
            room: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for room, address in suite.runtime["addresses"].items()
        }
        sandbox = await stack.enter_async_context(
            httpx.AsyncClient(base_url=suite.runtime["sandbox_url"], timeout=10)
        )
        caller = Caller(suite, found.canaries, found.heard, channels)
        await knock(suite, found.canaries, found.heard, TENANT)
        await call_every_door(caller)
        await live(caller, "calm")
        payment_id = await buy_with_a_card_in_the_body(caller, sandbox)
        await annoy_provider(caller, sandbox, payment_id)
        with refusing_tables(suite):
            await live(caller, "refused")
            await knock_once(caller, status={503})
        await run_jobs(caller, found.told_sinks)
        await killed_in_the_middle(caller, ("webhooks", "postgres", "subscriptions"))
        await live(caller, "again")
        await eventually(lambda: all_processed(suite), seconds=30)


async def all_processed(suite: RunningSuite) -> bool:
    with psycopg.connect(admin_url(suite)) as db:
        [(left,)] = db.execute("SELECT count(*) FROM webhooks.webhook_events WHERE NOT processed").fetchall()
    return bool(left == 0)


# -- collecting --------------------------------------------------------------------------------------------


async def collect(suite: RunningSuite, found: Evidence) -> None:
    """All that can be read while the suite runs."""
    password = (suite.data_dir / "postgres" / "password").read_text()
    found.needles = found.canaries.needles([password])
    pids = [int(line.partition(" ")[0]) for line in suite.survivors()]
    found.command_lines = search.command_lines(pids)
    rooms = ("ledger", "subscriptions", "webhooks", "scheduler")
    found.limits = {room: core_limit(suite.pid(room)) for room in rooms}
    async with httpx.AsyncClient() as http:
        scraped = await http.get(f"{suite.runtime['webhooks_http_url']}/metrics")
    found.said = {
        "metrics": scraped.content,
        "answers": search.everything_said(found.heard.answers),
        "alerts and notices": b"\n".join(body for each in found.told_sinks for body in each.received),
    }
    found.tables = search.tables(admin_url(suite))
    with psycopg.connect(admin_url(suite), row_factory=psycopg.rows.dict_row) as db:
        found.rows = db.execute("SELECT * FROM webhooks.webhook_events ORDER BY received_at, id").fetchall()
    for name in KEPT_SECRET:
        found.modes[name] = (suite.data_dir / name).stat().st_mode & 0o777
        found.files[name] = (suite.data_dir / name).read_bytes()


def core_limit(pid: int | None) -> str:
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4] for line in limits if line.startswith("Max core file size"))


# -- what is asked of it -----------------------------------------------------------------------------------


def reported(found: list[Hit]) -> str:
    return "\n".join(f"{hit.what} in {hit.place}: …{hit.around!r}…" for hit in found)


def test_every_door_refuses_canaries_and_names_the_field(evidence: Evidence) -> None:
    assert "\n".join(evidence.heard.wrong) == ""


@pytest.mark.parametrize("place", ["logs", "tables", "said", "command_lines"])
def test_no_secret_and_no_card_is_in(place: str, evidence: Evidence) -> None:
    places = getattr(evidence, place)
    assert any(places.values())
    assert reported(search.hits(places, evidence.needles)) == ""


@pytest.mark.parametrize("place", ["logs", "command_lines"])
def test_no_callers_words_are_in(place: str, evidence: Evidence) -> None:
    assert reported(search.hits(getattr(evidence, place), evidence.canaries.whispers())) == ""


def test_callers_words_are_where_they_belong(evidence: Evidence) -> None:
    """Or the searches above would be of calls that did nothing."""
    found = {hit.place for hit in search.hits(evidence.tables, evidence.canaries.whispers())}
    assert found >= {
        *("ledger.credit_transactions", "ops.billing_audit_log", "webhooks.webhook_events"),
        *("subscriptions.billing_info", "subscriptions.billing_notifications"),
    }
    # The provider's reason as well, without what nobody may keep of it.
    assert b"was declined; password: [masked], Basic [masked]" in b"".join(evidence.tables.values())
    assert search.hits({"metrics": evidence.said["metrics"]}, evidence.canaries.whispers()) == []


def test_no_sink_sends_us_elsewhere(evidence: Evidence) -> None:
    """They answer with 302 and a canary; whoever follows would hand our alerts to anybody."""
    for each, what in zip(evidence.told_sinks, ("alerts", "notices"), strict=True):
        assert each.received
        assert set(each.paths) == {f"/{what}/{each.token}"}


def test_secrets_lie_in_their_owners_files_and_nowhere_else(evidence: Evidence) -> None:
    """The raw files of the database as well: what was in a row for a moment is still in them."""
    found = search.hits(evidence.files, evidence.needles)
    assert reported([hit for hit in found if hit.place not in KEPT_SECRET]) == ""
    assert {hit.place for hit in found} == KEPT_SECRET
    assert set(evidence.modes.values()) == {0o600}


def test_no_process_leaves_a_core_dump(evidence: Evidence) -> None:
    assert set(evidence.limits.values()) == {"0"}


def test_what_was_masked_is_flagged_and_applied_all_the_same(evidence: Evidence) -> None:
    masked = [row for row in evidence.rows if row["masked"]]
    applied = [row for row in masked if row["outcome"] in ("applied", "ignored", "superseded")]
    unreadable = [row for row in masked if bytes(row["body"]) == b"\xff"]
    assert len(masked) > 40
    assert len(applied) > 4
    assert len(unreadable) > 2
    assert {row["outcome"] for row in masked} >= {"applied", "dead"}
    assert not [
        row for row in evidence.rows if row["outcome"] == "dead" and "refused" in (row["last_error"] or "")
    ]


# -- the search itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["as it is", "hexadecimal", "base64", "in a URL"])
@pytest.mark.parametrize("kind", ["secret", "card", "spaced card"])
def test_the_search_finds_what_is_planted_in_a_log_line(kind: str, written: str) -> None:
    canaries = Canaries()
    program = (
        "import sys; from shared import logs; logs.configure('ledger');"
        "logs.get_logger().info('planted', note=sys.stdin.read())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input=f"before {encoded(canaries, kind, written)} after", text=True,
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    assert [hit.place for hit in search.hits({"log": ended.stderr.encode()}, canaries.needles())] == ["log"]
    assert search.hits({"log": ended.stderr.encode()}, Canaries().needles()) == []


@pytest.mark.parametrize("kind", ["secret", "card", "spaced card"])
def test_the_search_finds_what_is_planted_in_a_row(kind: str, database: Database) -> None:
    canaries = Canaries()
    with psycopg.connect(database.admin_url, autocommit=True) as db:
        db.execute("CREATE TABLE ops.planted (text text, bytes bytea, json jsonb, list text[])")
        try:
            for column in ("text", "bytes", "json", "list"):
                value: Any = f"before {encoded(canaries, kind, 'as it is')} after"
                value = {
                    "text": value,
                    "bytes": value.encode(),
                    "json": json.dumps([value]),
                    "list": [value],
                }[column]
                db.execute("TRUNCATE ops.planted")
                db.execute(f"INSERT INTO ops.planted ({column}) VALUES (%s)", [value])
                found = search.hits(search.tables(database.admin_url), canaries.needles())
                assert [hit.place for hit in found] == ["ops.planted"], column
        finally:
            db.execute("DROP TABLE ops.planted")


def encoded(canaries: Canaries, kind: str, written: str) -> str:
    value = {
        "secret": canaries.secret(),
        "card": canaries.card(),
        "spaced card": search.spaced(canaries.card(), " "),
    }
    text = value[kind]
    return {
        "as it is": text,
        "hexadecimal": text.encode().hex(),
        "base64": base64.b64encode(f"no {text} no".encode()).decode(),
        "in a URL": quote(text),
    }[written]
