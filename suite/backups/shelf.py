"""The folder that backups lie in: each is a dump with its manifest beside it, and only the two together count."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.backups.errors import BackupFailed
from suite.files import write_private

FORMAT = 1
_STAMP = "%Y%m%dT%H%M%SZ"
_OURS = re.compile(r"billing-\d{8}T\d{6}Z\.(dump|json)")
_UNFINISHED = re.compile(r"billing-\d{8}T\d{6}Z\.(dump\.unfinished|json\.\d+)")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a dump holds, as counted in the very snapshot that it was taken of."""

    taken_at: datetime  # not later than the snapshot: what was acknowledged before it is in there
    seconds: float
    bytes: int
    sha256: str
    server: str
    programs: str
    database: str
    revisions: dict[str, str]
    transactions: int
    amount: int
    rows: dict[str, int]

    def written(self) -> str:
        """As it lies on disk."""
        return json.dumps({"format": FORMAT, **asdict(self), "taken_at": self.taken_at.isoformat()}, indent=2)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """ValueError for what is none of ours."""
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ValueError("a format of another release")
            return replace(cls(**content), taken_at=datetime.fromisoformat(content["taken_at"]))
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a manifest: {error}") from error


@dataclass(frozen=True)
class Backup:
    """A dump and its manifest."""

    dump: Path
    manifest: Manifest

    @classmethod
    def at(cls, dump: Path) -> Backup:
        """The backup whose dump this is; ValueError when its manifest is missing or it has another length."""
        beside = dump.with_suffix(".json")
        if not beside.is_file():
            raise ValueError(f"{beside.name} is not beside it, so nobody can tell whether it is whole")
        manifest = Manifest.read(beside)
        if (length := dump.stat().st_size) != manifest.bytes:
            raise ValueError(f"{dump.name} has {length} bytes; {manifest.bytes} were written")
        return cls(dump, manifest)

    def delete(self) -> None:
        """The manifest first: what is left of a deletion that was cut short does not count."""
        self.dump.with_suffix(".json").unlink(missing_ok=True)
        self.dump.unlink(missing_ok=True)


class Shelf:
    """Made when first written to, for its owner alone; what others put there is never touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def backups(self) -> list[Backup]:
        """The whole ones, oldest first."""
        return [found for found in self._look() if isinstance(found, Backup)]

    def broken(self) -> list[str]:
        """A sentence for each file with a name of ours that is no backup."""
        return [found for found in self._look() if isinstance(found, str)]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One at a time; clears away what killed ones left unfinished."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupFailed(f"another backup is being written to {self.folder}") from None
            for path in self.folder.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink()
            yield

    def unfinished(self, taken_at: datetime) -> Path:
        """Where the dump of that moment is written before it counts."""
        final = self.folder / f"billing-{taken_at.astimezone(UTC).strftime(_STAMP)}.dump"
        if final.exists():
            raise BackupFailed(f"{final} exists already: two in one second")
        return final.with_suffix(".dump.unfinished")

    def keep(self, unfinished: Path, manifest: Manifest) -> Backup:
        """From now on it counts, also after a power cut."""
        dump = unfinished.with_suffix("")
        unfinished.rename(dump)
        sync(self.folder)
        write_private(dump.with_suffix(".json"), manifest.written() + "\n")
        sync(self.folder)
        return Backup(dump, manifest)

    def _look(self) -> Iterator[Backup | str]:
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        stems = dict.fromkeys(Path(name).stem for name in names if _OURS.fullmatch(name))
        for stem in stems:
            try:
                yield Backup.at(self.folder / f"{stem}.dump")
            except FileNotFoundError:
                yield f"{stem}.json: the dump is not there"
            except ValueError as error:
                yield f"{stem}.dump: {error}"


def sync(path: Path) -> None:
    """Returns when it is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """Its SHA-256, read back from where it lies."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()
