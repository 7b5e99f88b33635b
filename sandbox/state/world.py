"""The records of the sandbox: staged while a request works, then kept and journaled as one."""

import copy
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sandbox.entities import Entity
from sandbox.errors import unknown_id
from shared.clock import Clock


@dataclass(slots=True)
class Record:
    """One thing: the entity that Razorpay shows and what it keeps to itself."""

    kind: str
    entity: Entity
    inner: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the merchant: names and snapshots, not yet bytes."""

    name: str
    contains: list[str]
    payload: dict[str, Entity]
    created_at: int
    # What a few events carry next to their entities, by its place in the payload.
    beside: dict[str, Any] = field(default_factory=dict)


class Journal:
    """An append-only file with one line for each committed change; a torn last line is a change that never was."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = self._open()

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise RuntimeError(f"{self._path} belongs to a sandbox that is running") from None
        return file

    def read(self) -> Iterator[Record]:
        """Every record in the order it was written; cuts off a torn tail."""
        whole = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                for kind, entity, inner in json.loads(line):
                    yield Record(kind, entity, inner)
        os.ftruncate(self._file, whole)

    def append(self, records: list[Record]) -> None:
        """Writes the records as one line with one system call."""
        changes = [[record.kind, record.entity, record.inner] for record in records]
        line = json.dumps(changes, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        if written < len(line):
            # A full disk: half a line would swallow the next one too.
            os.ftruncate(self._file, before)
            raise OSError(f"{self._path}: no room for a change")

    def rewrite(self, records: list[Record]) -> None:
        """Replaces the history by its outcome; a crash leaves the one or the other."""
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        compact = Journal(fresh)
        for record in records:
            compact.append([record])
        os.fsync(compact._file)
        compact.close()
        fresh.replace(self._path)
        self.close()
        self._file = self._open()

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._file)


class World:
    """All records by kind and id, with an all-or-nothing stage in front."""

    def __init__(self, clock: Clock, *, account_id: str, journal: Journal | None = None) -> None:
        self.account_id = account_id
        self._clock = clock
        self._journal = journal
        self._records: dict[str, dict[str, Record]] = {}
        self._staged: dict[tuple[str, str], Record] = {}
        self._events: list[Event] = []
        self._written = 0
        if journal is not None:
            self._recall(journal)

    def _recall(self, journal: Journal) -> None:
        for record in journal.read():
            self._keep(record)
            self._written += 1

    def compact(self) -> None:
        """Replaces a journal that is mostly history by what is left of it."""
        kept = [record for records in self._records.values() for record in records.values()]
        if self._journal is not None and self._written > 2 * len(kept) + 1_000:
            self._journal.rewrite(kept)
            self._written = len(kept)

    def now(self) -> int:
        """Unix seconds by the sandbox's clock."""
        return int(self.clock().timestamp())

    def clock(self) -> datetime:
        """The injected clock's time."""
        return self._clock()

    def add(self, kind: str, entity: Entity, **inner: Any) -> Record:
        """Stages a new record."""
        record = Record(kind, entity, inner)
        self._staged[kind, entity["id"]] = record
        return record

    def edit(self, kind: str, entity_id: str) -> Record:
        """A staged copy to change, or Razorpay's refusal of an unknown id."""
        if staged := self._staged.get((kind, entity_id)):
            return staged
        record = copy.deepcopy(self.get(kind, entity_id))
        self._staged[kind, entity_id] = record
        return record

    def get(self, kind: str, entity_id: str) -> Record:
        """The record for reading only, or Razorpay's refusal of an unknown id."""
        record = self.find(kind, entity_id)
        if record is None:
            raise unknown_id()
        return record

    def find(self, kind: str, entity_id: str) -> Record | None:
        """The record for reading only, when there is one."""
        return self._staged.get((kind, entity_id)) or self._records.get(kind, {}).get(entity_id)

    def all(self, kind: str) -> list[Record]:
        """Every kept record of a kind, oldest first; what is staged is not yet among them."""
        return list(self._records.get(kind, {}).values())

    def count(self, kind: str) -> int:
        """How many records of a kind are kept."""
        return len(self._records.get(kind, ()))

    def remove(self, kind: str, entity_ids: list[str]) -> None:
        """Forgets records of which nobody will ask again; the journal keeps them until it is compacted."""
        for entity_id in entity_ids:
            self._records.get(kind, {}).pop(entity_id, None)

    def emit(
        self, name: str, contains: list[str], *, beside: dict[str, Any] | None = None, **payload: Entity
    ) -> None:
        """Stages an event with a snapshot of its entities as they are now."""
        self._events.append(
            Event(name, contains, copy.deepcopy(payload), self.now(), copy.deepcopy(beside or {}))
        )

    def events(self) -> list[Event]:
        """The staged events, in order."""
        return list(self._events)

    def commit(self) -> None:
        """Keeps and journals what was staged, in one line."""
        records = list(self._staged.values())
        self.rollback()
        if records and self._journal is not None:
            self._journal.append(records)
            self._written += len(records)
        for record in records:
            self._keep(record)

    def rollback(self) -> None:
        """Forgets what was staged."""
        self._staged, self._events = {}, []

    def close(self) -> None:
        """Closes the journal."""
        if self._journal is not None:
            self._journal.close()

    def _keep(self, record: Record) -> None:
        self._records.setdefault(record.kind, {})[record.entity["id"]] = record
