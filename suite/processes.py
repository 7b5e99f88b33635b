"""Processes that never outlive whoever started them."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Account:
    """The unprivileged user that a process is dropped to."""

    uid: int
    gid: int

    @classmethod
    def for_postgres(cls) -> Account | None:
        """None: stay who we are. Postgres refuses root, and `nobody` exists everywhere."""
        if os.geteuid() != 0:
            return None
        entry = pwd.getpwnam("nobody")
        return cls(entry.pw_uid, entry.pw_gid)

    def can_enter(self, folder: Path) -> bool:
        """Whether this account may pass through the folder."""
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        if status.st_gid == self.gid:
            return bool(status.st_mode & 0o010)
        return bool(status.st_mode & 0o001)


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends the child this signal when the thread that forked it ends."""
    parent = os.getpid()

    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
            # The parent may have died between the fork and the line above.
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def started_at(pid: int) -> int | None:
    """When a process started, in kernel ticks, to tell reused pids apart; None when gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _started_without_proc(pid)
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _started_without_proc(pid: int) -> int | None:
    if sys.platform == "linux":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def living_in(folder: Path) -> list[int]:
    """The live processes that work in this folder; a Postgres and its children sit in their data."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder:
                pids.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile, a zombie, or somebody else's
    return pids


@dataclass(frozen=True)
class ProcessNote:
    """One process of the suite; the start time tells it from a later one with the same pid."""

    pid: int
    started_at: int | None

    @classmethod
    def of(cls, pid: int) -> ProcessNote:
        return cls(pid, started_at(pid))

    def is_alive(self) -> bool:
        return self.started_at is not None and started_at(self.pid) == self.started_at
