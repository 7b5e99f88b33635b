"""What happened, counted: answers, refusals, repeats, and what must never be answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shared.errors import Aborted, BillingError, DeadlineExceeded, Internal, ResourceExhausted, Unavailable

Answer = TypeVar("Answer")

# Rules that say no, which a customer may meet. What stands in no contract as a refusal is a bug.
LEGAL = ("FAILED_PRECONDITION", "PERMISSION_DENIED", "NOT_FOUND", "RESOURCE_EXHAUSTED")
PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
PROVIDER_ATTEMPTS = 4
REPEAT_SECONDS_MAX = 45.0
PAUSE_SECONDS_MAX = 1.0


class Unexpected(Exception):
    """An answer that no caller should ever get."""


class PutOff(Exception):
    """The provider does not say what it did: the same call again, with the same key, on another day."""


@dataclass
class Tally:
    """Counters for the summary, and what callers were told, for the end."""

    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    put_off: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    spent_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    unserved: Counter[str] = field(default_factory=Counter)
    # (tenant, key) -> credits, as the ledger acknowledged them.
    debits: dict[tuple[str, str], int] = field(default_factory=dict)
    adjustments: dict[tuple[str, str], int] = field(default_factory=dict)

    async def ask(self, method: Callable[..., Awaitable[Answer]], request: Any, who: str) -> Answer | None:
        """The answer, or None for a legal refusal; the same key again while the outcome is unknown."""
        name = type(request).__name__.removesuffix("Request")
        began, pause, silent = time.monotonic(), 0.02, 0
        while True:
            try:
                answer = await method(request)
            except (Unavailable, DeadlineExceeded, Aborted, ResourceExhausted) as error:
                silent += error.reason == PROVIDER_UNAVAILABLE
                if silent == PROVIDER_ATTEMPTS:
                    self.put_off[name] += 1
                    raise PutOff(name) from error
                if time.monotonic() - began > REPEAT_SECONDS_MAX:
                    raise Unexpected(f"{who}: {name} kept answering {error.code} {error.reason}") from error
                self.repeats[name] += 1
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)
            except Internal as error:
                raise Unexpected(f"{who}: {name} answered INTERNAL: {error.message}") from error
            except BillingError as error:
                self._refused(name, error, who, request)
                return None
            else:
                self.answers[name] += 1
                self.spent_seconds[name] += time.monotonic() - began
                return answer

    def _refused(self, name: str, error: BillingError, who: str, request: Any) -> None:
        if error.code == "UNIMPLEMENTED":
            self.unserved[name] += 1
        elif error.code in LEGAL:
            self.refusals[name, error.reason] += 1
        else:
            asked = " ".join(str(request).split())
            raise Unexpected(
                f"{who}: {name} answered {error.code} {error.reason}: {error.message} for {asked}"
            )
