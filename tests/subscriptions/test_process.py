"""The room as a process: its commands, its settings, its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import KEY_ID, KEY_SECRET, Sandbox, free_port, until

ROOT = Path(__file__).resolve().parents[2]


def environment(database: Database, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SUBSCRIPTIONS_DATABASE_URL": database.url("subscriptions_rw"),
        **{name.upper(): value for name, value in SECRETS.items()},
        **more,
    }


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "services.subscriptions", *arguments],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_missing_and_wrong_settings_are_named_at_once_without_values(database: Database) -> None:
    told = environment(database, RAZORPAY_MODE="sideways")
    del told["ROOM_SECRET"]

    ended = run(**told)

    assert ended.returncode != 0
    assert "ROOM_SECRET" in ended.stderr
    assert "RAZORPAY_MODE" in ended.stderr
    assert SECRETS["gateway_secret"] not in ended.stderr


def test_a_moved_clock_refuses_the_real_provider(database: Database, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("0")

    ended = run(**environment(database, BILLING_TEST_CLOCK=str(tmp_path / "clock")))

    assert ended.returncode != 0
    assert "RAZORPAY_API_URL" in ended.stderr


def test_apply_catalog_does_not_need_the_provider(database: Database) -> None:
    told = environment(
        database,
        RAZORPAY_KEY_ID=KEY_ID,
        RAZORPAY_KEY_SECRET=KEY_SECRET,
        RAZORPAY_API_URL=f"http://127.0.0.1:{free_port()}",
    )

    first, second, dry = (
        run("apply-catalog", **told),
        run("apply-catalog", **told),
        run("apply-catalog", "--dry-run", **told),
    )

    assert (first.returncode, second.returncode, dry.returncode) == (0, 0, 0), first.stderr
    assert "The catalogue is up to date." in second.stdout
    assert "₹58,988.20" in dry.stdout


def test_apply_catalog_makes_the_providers_plans_once(database: Database, sandbox: Sandbox) -> None:
    told = environment(
        database, RAZORPAY_KEY_ID=KEY_ID, RAZORPAY_KEY_SECRET=KEY_SECRET, RAZORPAY_API_URL=sandbox.url
    )

    assert "6 plans stand at the provider" in run("apply-catalog", **told).stdout
    assert "6 plans stand at the provider" in run("apply-catalog", **told).stdout

    plans = httpx.get(
        f"{sandbox.url}/v1/plans", params={"count": 100}, auth=(KEY_ID, KEY_SECRET), trust_env=False
    ).json()["items"]
    ours = [plan for plan in plans if plan["notes"] and plan["notes"]["plan_code"] == "pro"]
    # Tests that sold it at another price made plans beside these.
    made = [(plan["period"], plan["item"]["amount"]) for plan in ours]
    assert [made.count(price) for price in (("monthly", 235_882), ("yearly", 2_358_820))] == [1, 1]


def test_it_serves_and_stops_when_told(database: Database) -> None:
    port = free_port()
    metrics = f"127.0.0.1:{free_port()}"
    told = environment(
        database, SUBSCRIPTIONS_LISTEN=f"127.0.0.1:{port}", SUBSCRIPTIONS_METRICS_LISTEN=metrics
    )
    process = subprocess.Popen([sys.executable, "-m", "services.subscriptions"], cwd=ROOT, env=told)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)

            def serving() -> bool:
                try:
                    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                except grpc.RpcError:
                    return False
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            until(serving, 20)
        shown = httpx.get(f"http://{metrics}/metrics", trust_env=False).text
        for number in ("billing_reconciliation_tasks", "billing_past_due_tenants", "billing_notices_owed"):
            assert f"\n{number}" in shown
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
