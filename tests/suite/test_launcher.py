"""The launcher: says where everything is, keeps it running, and leaves nothing behind."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from shared.rpc.health import is_serving
from suite import processes
from suite.processes import Account
from tests.conftest import Database
from tests.suite.running import HOUSE, RunningSuite, python_for

PROCESSES = {"postgres", "sandbox", "ledger", "subscriptions", "webhooks", "scheduler"}


def suite_command(suite: RunningSuite, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suite", *arguments],
        cwd=HOUSE,
        env={**suite.environment, **settings},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def eventually(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def own_suite() -> Iterator[RunningSuite]:
    """One that a test may break."""
    folder = Path(tempfile.mkdtemp(prefix="billing-own-suite-"))
    folder.chmod(0o711)
    suite = RunningSuite(folder)
    yield suite
    suite.stop()
    shutil.rmtree(folder)


def test_the_note_says_where_everything_is_to_its_owner_alone(running_suite: RunningSuite) -> None:
    runtime = json.loads((running_suite.data_dir / "runtime.json").read_text())

    assert mode_of(running_suite.data_dir / "runtime.json") == 0o600
    assert mode_of(running_suite.data_dir / "secrets.json") == 0o600
    assert set(runtime["processes"]) == PROCESSES
    for process in runtime["processes"].values():
        assert processes.started_at(process["pid"]) == process["started_at"]
    for room in ("ledger", "subscriptions", "webhooks", "scheduler"):
        # Another test may have killed it just now.
        eventually(partial(is_serving, runtime["addresses"][room]))
        assert runtime["addresses"][room].startswith("127.0.0.1:")
    for url in (runtime["webhooks_http_url"], runtime["sandbox_url"]):
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert len({runtime["secrets"][name] for name in runtime["secrets"]}) == 6


def test_every_role_of_the_note_connects_as_itself(running_suite: RunningSuite) -> None:
    urls = running_suite.runtime["database"]["urls"]

    assert set(urls) == {
        *("ledger_rw", "subscriptions_rw", "webhooks_rw", "scheduler_rw"),
        *("billing_operator", "billing_readonly"),
    }
    for role, url in urls.items():
        with psycopg.connect(url) as db:
            assert db.execute("SELECT current_user").fetchone() == (role,)


def test_no_room_knows_another_rooms_database_or_the_administrators(running_suite: RunningSuite) -> None:
    rooms = PROCESSES - {"postgres", "sandbox"}
    for room in rooms:
        environment = environment_of(running_suite, room)

        assert f"{room.upper()}_DATABASE_URL=" in environment
        assert "\0DATABASE_URL=" not in environment
        for other in rooms - {room}:
            assert f"{other.upper()}_DATABASE_URL=" not in environment
    assert "RAZORPAY_KEY_SECRET" not in environment_of(running_suite, "scheduler")


def environment_of(suite: RunningSuite, room: str) -> str:
    """What its process was started with."""
    return Path(f"/proc/{suite.pid(room)}/environ").read_text()


def test_a_second_run_says_which_one_is_running(running_suite: RunningSuite) -> None:
    answer = suite_command(running_suite, "run")

    assert answer.returncode == 1
    assert f"process {running_suite.runtime['pid']}" in answer.stderr
    for address in running_suite.runtime["addresses"].values():
        assert address in answer.stderr


def test_psql_opens_as_the_operator(running_suite: RunningSuite) -> None:
    answer = suite_command(running_suite, "psql", "--", "-X", "-At", "-c", "SELECT current_user, 1 + 1")

    assert answer.stdout.strip() == "billing_operator|2", answer.stderr


def test_a_key_is_printed_for_a_command_line(running_suite: RunningSuite) -> None:
    assert (
        suite_command(running_suite, "key", "operator").stdout.strip()
        == running_suite.runtime["secrets"]["operator_secret"]
    )
    assert suite_command(running_suite, "key", "front").returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("command", ["run", "demo", "psql", "key", "clean"])
def test_another_user_is_told_whose_suite_it_is(running_suite: RunningSuite, command: str) -> None:
    nobody = pwd.getpwnam("nobody")
    python = python_for(Account(nobody.pw_uid, nobody.pw_gid))
    if python is None:
        pytest.skip("this checkout, or every Python like ours, is closed to nobody")
    answer = subprocess.run(
        [python, "-m", "suite", command],
        cwd=HOUSE,
        env={**running_suite.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert answer.returncode == 1
    assert answer.stderr.startswith(str(running_suite.data_dir))
    assert "belongs to another user" in answer.stderr


def test_a_running_suite_is_not_cleaned_away(running_suite: RunningSuite) -> None:
    answer = suite_command(running_suite, "clean")

    assert answer.returncode == 1
    assert "stop it first" in answer.stderr
    assert (running_suite.data_dir / "runtime.json").exists()


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_what_is_killed_comes_back_at_the_same_address(running_suite: RunningSuite, name: str) -> None:
    def note() -> dict:
        return json.loads((running_suite.data_dir / "runtime.json").read_text())

    before = note()
    os.kill(before["processes"][name]["pid"], signal.SIGKILL)

    eventually(lambda: note()["processes"].get(name) not in (None, before["processes"][name]))
    eventually(lambda: answers(note(), name))
    assert note()["addresses"] == before["addresses"]
    assert note()["database"] == before["database"]
    assert "starting it again" in running_suite.output()


def answers(runtime: dict, name: str) -> bool:
    if name == "postgres":
        try:
            psycopg.connect(runtime["database"]["urls"]["billing_operator"]).close()
        except psycopg.OperationalError:
            return False
        return True
    if name == "sandbox":
        try:
            return httpx.get(f"{runtime['sandbox_url']}/healthz").status_code == 200
        except httpx.TransportError:
            return False
    return is_serving(runtime["addresses"][name])


def test_each_line_bears_the_name_of_who_said_it(running_suite: RunningSuite) -> None:
    speakers = {line.split("|")[0].strip() for line in running_suite.output().splitlines() if " | {" in line}

    assert speakers >= {"ledger", "subscriptions", "webhooks", "scheduler"}
    assert "\x1b[" not in running_suite.output(), "no colours into a file"


def test_a_killed_launcher_leaves_nothing_and_its_data_serves_the_next(own_suite: RunningSuite) -> None:
    own_suite.start()
    first = own_suite.runtime
    assert own_suite.process is not None

    own_suite.process.kill()
    own_suite.process.wait()
    eventually(lambda: own_suite.survivors() == [], seconds=10)
    own_suite.start()

    assert own_suite.runtime["secrets"] == first["secrets"]
    assert own_suite.runtime["database"]["urls"] == first["database"]["urls"]
    began = time.monotonic()
    own_suite.stop()
    assert time.monotonic() - began < 12
    assert not (own_suite.data_dir / "runtime.json").exists()


def test_an_address_that_was_asked_for_and_is_taken_is_refused_by_name(own_suite: RunningSuite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        wish = f"127.0.0.1:{other.getsockname()[1]}"
        answer = suite_command(own_suite, "run", LEDGER_LISTEN=wish)

    assert answer.returncode == 1
    assert f"LEDGER_LISTEN asks for {wish}" in answer.stderr


def test_wrong_settings_are_named_together(own_suite: RunningSuite) -> None:
    wrong = {"LEDGER_LISTEN": "here", "BILLING_POSTGRES_PORT": "70000", "DATABASE_URL": "mysql://a:hush@b/c"}
    answer = suite_command(own_suite, "run", **wrong)

    assert answer.returncode != 0
    for name in wrong:
        assert name in answer.stderr
    assert "hush" not in answer.stderr


def test_a_database_that_may_not_be_prepared_is_refused_with_what_it_needs(
    own_suite: RunningSuite, database: Database
) -> None:
    answer = suite_command(own_suite, "run", DATABASE_URL=database.url("ledger_rw"))

    assert answer.returncode == 1
    assert "must be allowed to create roles" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_room_that_cannot_start_ends_the_run_with_its_reason(own_suite: RunningSuite) -> None:
    answer = suite_command(own_suite, "run", REFLECTION="perhaps")

    assert answer.returncode == 1
    assert "REFLECTION is wrong" in answer.stdout
    assert "reasons are above" in answer.stderr
    assert own_suite.survivors() == []
