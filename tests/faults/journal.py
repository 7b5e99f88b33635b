"""What callers asked and what they were told, by idempotency key; nothing here knows how a ledger works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.message import Message

from shared.errors import Aborted, BillingError, DeadlineExceeded, ResourceExhausted, Unavailable

# Refused by what stands beside it in its batch: nothing of it is kept.
NOT_REMEMBERED = {"GROUP_ABORTED"}
# Operators and rooms ask again under the same key once the reason is gone: their refusals are not kept.
OF_OPERATORS_AND_ROOMS = {"AdjustCredits", "GrantCredits", "RevokeGrant", "RestoreGrant"}
# What a repeated refusal says beyond the first one.
OF_REPEATS = ("replayed", "decided_at")
_UNKNOWN_CODES = {grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}
_TURNED_AWAY_CODES = {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], grpc.StatusCode.ABORTED.value[0]}


Send = Callable[[Message], Awaitable[Any]]


class Told(Enum):
    """The four things that a caller can be told."""

    OK = "it happened"
    REFUSED = "it did not and never will under this key"
    TURNED_AWAY = "it did not, and may be asked again"
    UNKNOWN = "it may have happened"


@dataclass(frozen=True)
class Answer:
    """What one key was told by one call."""

    told: Told
    response: Any = None
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_kept: bool = True  # where it is a refusal

    @property
    def is_definite(self) -> bool:
        return self.told in (Told.OK, Told.REFUSED)

    @property
    def leaves_a_record(self) -> bool:
        """Whether a repeat is told that it is one."""
        return self.told is Told.OK or (self.told is Told.REFUSED and self.is_kept)

    @property
    def replayed(self) -> bool:
        if self.response is not None:
            return bool(getattr(self.response, "replayed", False))
        return self.metadata.get("replayed") == "true"

    @property
    def content(self) -> tuple[Any, ...]:
        """Equal for a first answer and its repeats, and for nothing else."""
        metadata = {name: value for name, value in self.metadata.items() if name not in OF_REPEATS}
        if self.response is None:
            return self.told, self.reason, tuple(sorted(metadata.items()))
        plain = type(self.response)()
        plain.CopyFrom(self.response)
        plain.ClearField("replayed")
        return self.told, plain.SerializeToString(deterministic=True)

    @property
    def transaction(self) -> types.Transaction | None:
        """What was booked, where the operation moves credits."""
        if self.response is None or "transaction" not in self.response.DESCRIPTOR.fields_by_name:
            return None
        booked: types.Transaction = self.response.transaction
        return booked if self.response.HasField("transaction") else None


@dataclass
class Call:
    """One request, asked once or many times, and every answer to each of its keys."""

    name: str
    rpc: str
    request: Any  # a message of the contract
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.answers = {key: [] for key in self.keys}

    @property
    def keys(self) -> list[str]:
        if isinstance(self.request, pb.BatchDebitRequest):
            return [item.debit.idempotency_key for item in self.request.items]
        return [self.request.idempotency_key]

    @property
    def is_settled(self) -> bool:
        """Whether every key was told something definite."""
        return all(any(answer.is_definite for answer in told) for told in self.answers.values())

    def tell(self, answers: Mapping[str, Answer]) -> None:
        for key, answer in answers.items():
            self.answers[key].append(answer)

    async def ask(self, send: Send) -> dict[str, Answer]:
        """One attempt; answers nothing that the ledger's contract does not know."""
        try:
            response = await send(self.request)
        except (Unavailable, DeadlineExceeded, TimeoutError) as error:
            answer = Answer(Told.UNKNOWN, reason=type(error).__name__)
        except (ResourceExhausted, Aborted) as error:
            answer = Answer(Told.TURNED_AWAY, reason=error.reason)
        except BillingError as refusal:
            assert refusal.code == "FAILED_PRECONDITION", f"{self.name}: {refusal!r}"
            is_kept = self.rpc not in OF_OPERATORS_AND_ROOMS
            answer = Answer(Told.REFUSED, None, refusal.reason, refusal.metadata, is_kept)
        else:
            if isinstance(response, pb.BatchDebitResponse):
                return dict(zip(self.keys, map(_answer_of_item, response.results), strict=True))
            answer = Answer(Told.OK, response)
        return dict.fromkeys(self.keys, answer)


def _answer_of_item(result: pb.BatchDebitResult) -> Answer:
    if result.WhichOneof("result") == "debit":
        return Answer(Told.OK, result.debit)
    refusal = result.refusal
    if refusal.code in _UNKNOWN_CODES:
        return Answer(Told.UNKNOWN, reason=refusal.reason)
    if refusal.code in _TURNED_AWAY_CODES:
        return Answer(Told.TURNED_AWAY, reason=refusal.reason)
    is_kept = refusal.reason not in NOT_REMEMBERED
    return Answer(Told.REFUSED, None, refusal.reason, dict(refusal.metadata), is_kept)


@dataclass
class Journal:
    """Every call of a run."""

    calls: list[Call] = field(default_factory=list)

    def add(self, call: Call) -> Call:
        self.calls.append(call)
        return call

    def each(self) -> Iterator[tuple[Call, str, list[Answer]]]:
        """(call, key, what the key was told)"""
        for call in self.calls:
            for key, answers in call.answers.items():
                yield call, key, answers

    def count(self, told: Told) -> int:
        """How many answers of this kind were given."""
        return sum(answer.told is told for _, _, answers in self.each() for answer in answers)

    def summary(self) -> str:
        counts = ", ".join(f"{self.count(told)} {told.name.lower()}" for told in Told)
        return f"{len(self.calls)} calls: {counts}"
