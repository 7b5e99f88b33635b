"""What a command found, and what it would do about it: the same shape for every runbook."""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class NotThere(Exception):
    """What the command line names does not exist; the message says what was looked for."""


class NotDone(Exception):
    """A step came to nothing, or what it was to mend is not well; the message says why."""


class PartlyDone(NotDone):
    """A step of many changes of which some were made; the message says how many."""


class Stopped(PartlyDone):
    """Ctrl-C in the middle of a step; the message says how far it came."""


class Verdict(enum.StrEnum):
    """How things stand."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"  # somebody did not answer


class Exit(enum.IntEnum):
    """What the exit status says; 2 is typer's, for a command line that makes no sense."""

    OK = 0  # well, or done
    FAILED = 1  # could not find out, or was refused
    ATTENTION = 3  # something is wrong, and nothing was changed
    PARTLY = 4  # some steps were done, one was not: run it again with the same ticket
    INTERRUPTED = 130  # what a shell expects of a process that Ctrl-C ended


@dataclass(frozen=True)
class Fact:
    """Rows that support the verdict, and the statement or RPC that they are of."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    source: str  # SQL as in the runbook, or `LedgerAdminService.VerifyLedger`


@dataclass(frozen=True)
class Section:
    """One part of a look: rows, the statement or RPC that they are of, and how many more there are."""

    key: str  # its name in JSON, which stays as it is
    title: str
    rows: Sequence[Mapping[str, Any]]
    source: str
    more: int = 0
    aside: Sequence[str] = ()  # columns that are too wide for a table: in JSON alone
    spare: Sequence[str] = ()  # columns that a narrow terminal has no room for
    upright: bool = False  # one row, read from top to bottom


@dataclass(frozen=True)
class View:
    """Everything that a look has to show. One without a verdict is neither well nor ill."""

    subject: str
    sections: Sequence[Section]
    verdict: Verdict | None = None
    summary: str = ""
    next_steps: Sequence[str] = ()

    @property
    def exit(self) -> "Exit":
        """The exit status: whatever is not well needs a person."""
        return Exit.OK if self.verdict in {None, Verdict.OK} else Exit.ATTENTION


@dataclass(frozen=True)
class Order:
    """In whose name a plan is carried out, and under which key: the same ticket again changes nothing more."""

    ticket: str
    actor: str
    reason: str

    def key(self, step: str) -> str:
        """The idempotency key of one step."""
        return f"{self.ticket}:{step}"

    @property
    def told(self) -> str:
        """The reason as the audit log keeps it."""
        return f"{self.ticket}: {self.reason}"


@dataclass(frozen=True)
class Step:
    """One change. `act` answers in a few words what came of it."""

    name: str  # part of the key, so it must say which object is meant
    does: str
    touches: str  # rooms, tables, the provider
    act: Callable[[Order], Awaitable[str]]
    units: int = 1  # how many changes it makes, for the bar; more than one it tells Screen.advance itself


@dataclass(frozen=True)
class Diagnosis:
    """Everything that a command has to say before it changes anything."""

    subject: str
    verdict: Verdict
    summary: str  # one sentence
    facts: Sequence[Fact] = ()
    plan: Sequence[Step] = ()
    # Commands to type, or things that only a person can do.
    next_steps: Sequence[str] = ()


@dataclass(frozen=True)
class Done:
    """What became of one step."""

    step: Step
    ok: bool
    result: str
    partly: bool = False
    stopped: bool = False  # by Ctrl-C


@dataclass
class Report:
    """A diagnosis and what was done about it."""

    diagnosis: Diagnosis
    applied: list[Done] = field(default_factory=list)
    carried_out: bool = False

    @property
    def exit(self) -> Exit:
        """The exit status."""
        if any(done.stopped for done in self.applied):
            return Exit.INTERRUPTED
        if self.carried_out:
            failed = [done for done in self.applied if not done.ok]
            if not failed:
                return Exit.OK
            some = any(done.ok or done.partly for done in self.applied)
            return Exit.PARTLY if some else Exit.FAILED
        if self.diagnosis.verdict is Verdict.UNKNOWN:
            return Exit.FAILED
        return Exit.OK if self.diagnosis.verdict is Verdict.OK and not self.diagnosis.plan else Exit.ATTENTION
