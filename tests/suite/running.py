"""The real suite as a test runs it: `python -m suite run` in a folder of its own, on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from suite import processes
from suite.processes import Account

HOUSE = Path(__file__).resolve().parents[2]
LISTENERS = (
    *("LEDGER_LISTEN", "SUBSCRIPTIONS_LISTEN", "WEBHOOKS_LISTEN", "SCHEDULER_LISTEN"),
    *("WEBHOOKS_HTTP_LISTEN", "SANDBOX_LISTEN"),
    *(
        "LEDGER_METRICS_LISTEN",
        "SUBSCRIPTIONS_METRICS_LISTEN",
        "WEBHOOKS_METRICS_LISTEN",
        "SCHEDULER_METRICS_LISTEN",
    ),
)
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20


class RunningSuite:
    """A suite of its own; `runtime` is what runtime.json says."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.clock = data_dir / "clock"
        self.log = data_dir / "suite.log"
        self.settings = settings
        self.house = HOUSE  # whose code it runs
        self.runtime: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the launcher is started with; other commands of the suite need it to find this one."""
        return {
            **os.environ,
            **dict.fromkeys(LISTENERS, "127.0.0.1:0"),
            # A proxy is the way to the world outside, and nothing here may take it.
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9"),
            "BILLING_POSTGRES_PORT": "0",
            "BILLING_DATA_DIR": str(self.data_dir),
            "BILLING_TEST_CLOCK": str(self.clock),
            **self.settings,
        }

    def start(self) -> None:
        """Returns when every room serves."""
        if not self.clock.exists():
            self.clock.write_text("0")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "suite", "run"],
                cwd=self.house,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.die_with_parent(signal.SIGTERM),
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS_MAX
        note = self.data_dir / "runtime.json"
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the suite ended before it was ready:\n{self.output()}"
            if note.exists() and json.loads(note.read_text())["pid"] == self.process.pid:
                self.runtime = json.loads(note.read_text())
                return
            time.sleep(0.05)
        raise AssertionError(f"the suite was not ready after {READY_SECONDS_MAX} s:\n{self.output()}")

    def pid(self, name: str) -> int | None:
        """The process of this name as of now, for it changes with every restart; None while there is none."""
        note = json.loads((self.data_dir / "runtime.json").read_text())
        process = note["processes"].get(name)
        return process["pid"] if process else None

    def kill(self, name: str) -> None:
        """kill -9, as a machine out of memory does it; the launcher starts it again."""
        pid = self.pid(name)
        assert pid is not None, f"{name} is not running"
        os.kill(pid, signal.SIGKILL)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Ctrl-C; nothing may be left behind."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise AssertionError(f"Ctrl-C did not stop the suite:\n{self.output()}") from None
            self.process = None
        assert self.survivors() == [], f"the suite left processes behind:\n{self.output()}"

    def survivors(self) -> list[str]:
        """Every live process of this suite, as `pid command`; rooms bear its name, Postgres its folder."""
        mark = f"BILLING_DATA_DIR={self.data_dir}".encode()
        found = set(processes.living_in((self.data_dir / "postgres" / "data").resolve()))
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except OSError:
                continue
        found = {pid for pid in found if processes.started_at(pid) is not None}
        return [f"{pid} {_command_of(pid)}" for pid in sorted(found)]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "(gone)"


def python_for(account: Account) -> str | None:
    """An interpreter of our version that this account can start, with our packages in its reach."""
    version = f"python3.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        places = [Path(candidate).resolve().parent, Path(sysconfig.get_path("purelib")), HOUSE]
        if Path(candidate).exists() and all(
            account.can_enter(folder) for place in places for folder in (place, *place.parents)
        ):
            return candidate
    return None
