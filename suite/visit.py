"""A running suite for a command that needs one: the one that is there, else one for the duration."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from suite.files import HOUSE, DataFolder, Runtime
from suite.processes import die_with_parent

STOP_SECONDS_MAX = 30


class NotStarted(Exception):
    """The suite did not come up; the message has the end of its output."""


@contextmanager
def running_suite(folder: DataFolder) -> Iterator[Runtime]:
    """Where everything is; a suite that was started for this is stopped at the end."""
    runtime = Runtime.of_running_suite(folder)
    if runtime is not None:
        yield runtime
        return
    folder.make()
    output = folder.path / "run.log"
    with output.open("wb") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "suite", "run"],
            cwd=HOUSE,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us, and we stop it below
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
    try:
        while (runtime := Runtime.of_running_suite(folder)) is None:
            _assert_coming_up(launcher, output.read_text(errors="replace"))
            time.sleep(0.05)
        yield runtime
    finally:
        launcher.send_signal(signal.SIGINT)
        launcher.wait(STOP_SECONDS_MAX)


def _assert_coming_up(launcher: subprocess.Popen[bytes], output: str) -> None:
    if launcher.poll() is not None:
        last_lines = "\n".join(output.splitlines()[-20:])
        raise NotStarted(f"The suite could not be started:\n{last_lines}")
