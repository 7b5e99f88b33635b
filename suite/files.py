"""What the suite keeps on disk: where its data lies, its secrets, and the note that says what runs where."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO

from suite.processes import ProcessNote

HOUSE = Path(__file__).resolve().parent.parent


def write_private(path: Path, text: str) -> None:
    """Readable by the owner only, from the first byte on; complete or absent."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


@dataclass(frozen=True)
class DataFolder:
    """The folders of one suite."""

    path: Path
    postgres: Path

    @classmethod
    def choose(cls, wished: Path | None) -> DataFolder:
        """`.data` in the checkout; as root the database lies elsewhere, for a checkout is often closed to it."""
        if wished is not None:
            path = wished.absolute()
            return cls(path, path / "postgres")
        if os.geteuid() == 0:
            name = hashlib.sha256(str(HOUSE).encode()).hexdigest()[:12]
            return cls(HOUSE / ".data", Path("/var/lib/billing") / name / "postgres")
        return cls(HOUSE / ".data", HOUSE / ".data" / "postgres")

    @property
    def runtime(self) -> Path:
        return self.path / "runtime.json"

    def make(self) -> None:
        # Others may pass through, because as root the database below belongs to `nobody`; all files are 0600.
        self.path.mkdir(mode=0o711, parents=True, exist_ok=True)

    def remove(self) -> None:
        """Deletes what the suite made, and the folders if nothing else is in them."""
        shutil.rmtree(self.postgres, ignore_errors=True)
        for name in ("secrets.json", "runtime.json", "run.log", "sandbox.journal", "run.lock"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.postgres.parent, self.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def lock(self) -> IO[str] | None:
        """The right to run this suite, held until closed; None when another process has it."""
        file = (self.path / "run.lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def holder(self) -> str:
        """The process that holds the lock, for a message."""
        return (self.path / "run.lock").read_text().strip() or "unknown"


@dataclass(frozen=True)
class Secrets:
    """Made once for a suite, and kept, so that noted keys stay true over restarts."""

    gateway_secret: str
    operator_secret: str
    room_secret: str
    razorpay_key_id: str
    razorpay_key_secret: str
    razorpay_webhook_secret: str
    role_passwords: dict[str, str] = field(repr=False)

    @classmethod
    def keep(cls, folder: DataFolder, roles: Iterable[str]) -> Secrets:
        """The secrets of this folder, made if there are none; `roles` are those that log into the database."""
        path = folder.path / "secrets.json"
        if not path.exists():
            write_private(path, json.dumps(asdict(cls._fresh(roles)), indent=2))
        kept = cls(**json.loads(path.read_text()))
        # For this run alone: so a rotation can be tried.
        told = os.environ.get("RAZORPAY_WEBHOOK_SECRET")
        return replace(kept, razorpay_webhook_secret=told) if told else kept

    @classmethod
    def _fresh(cls, roles: Iterable[str]) -> Secrets:
        return cls(
            gateway_secret="gw_" + secrets.token_urlsafe(32),
            operator_secret="op_" + secrets.token_urlsafe(32),
            room_secret="room_" + secrets.token_urlsafe(32),
            razorpay_key_id="rzp_test_" + secrets.token_hex(7),
            razorpay_key_secret=secrets.token_urlsafe(24),
            razorpay_webhook_secret=secrets.token_urlsafe(24),
            role_passwords={role: secrets.token_urlsafe(24) for role in roles},
        )


@dataclass(frozen=True)
class DatabaseNote:
    """The database; `urls` has one entry per role that logs in."""

    host: str
    port: int
    name: str
    embedded: bool
    urls: dict[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """`runtime.json`: where everything listens, and how an operator connects. There while the suite serves."""

    pid: int
    started_at: int | None
    addresses: dict[str, str]
    metrics_urls: dict[str, str] = field(default_factory=dict)
    webhooks_http_url: str
    sandbox_url: str
    database: DatabaseNote
    secrets: dict[str, str] = field(repr=False)
    processes: dict[str, ProcessNote]
    data_dir: str
    log_level: str
    test_clock: str | None

    def write(self, folder: DataFolder) -> None:
        write_private(folder.runtime, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: DataFolder) -> Runtime | None:
        """What the file says, be it true or stale; None when there is none."""
        try:
            content = json.loads(folder.runtime.read_text())
        except FileNotFoundError:
            return None
        content["database"] = DatabaseNote(**content["database"])
        content["processes"] = {name: ProcessNote(**note) for name, note in content["processes"].items()}
        # Another release may have written it, before a rollback or a deploy: what it says beside this is not for us.
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    @classmethod
    def of_running_suite(cls, folder: DataFolder) -> Runtime | None:
        """The same, unless whoever wrote it is gone."""
        runtime = cls.read(folder)
        if runtime is None or not ProcessNote(runtime.pid, runtime.started_at).is_alive():
            return None
        return runtime
