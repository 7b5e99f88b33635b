"""Runs a command from its options to its exit status, the same way for all of them."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NoReturn

import typer

from billctl.desk import Desk, NoDatabase, open_desk, refusal, told
from billctl.diagnosis import (
    Diagnosis,
    Done,
    Exit,
    NotDone,
    NotThere,
    Order,
    PartlyDone,
    Report,
    Step,
    Stopped,
    View,
)
from billctl.screen import Screen, harmless, leave_complaining
from billctl.settings import Connections, Environment, NotConnected
from shared.config import load
from shared.errors import BillingError

# The options that commands share, under one name each.
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document instead of tables")]
WithSql = Annotated[bool, typer.Option("--sql", help="show the SQL and RPCs behind it")]
Apply = Annotated[bool, typer.Option("--apply", help="carry out the plan; without it nothing is changed")]
Ticket = Annotated[str, typer.Option("--ticket", help="the key: the same ticket again changes nothing more")]
Reason = Annotated[str, typer.Option("--reason", help="why, for the audit log")]
Actor = Annotated[str, typer.Option("--actor", help="who asks, for the audit log; default BILLCTL_ACTOR")]

TICKET_MAX = 64
STOPPED = "stopped, and nobody waited for its answer: the same line again finds out, and does nothing twice"


@dataclass(frozen=True)
class Wish:
    """What was typed beside the command's own arguments."""

    apply: bool = False
    ticket: str = ""
    reason: str = ""
    actor: str = ""
    as_json: bool = False
    with_sql: bool = False

    def order(self) -> Order | None:
        """In whose name to act, or None to change nothing; ends the command when that is not said whole."""
        if not self.apply:
            return None
        actor = self.actor or load(Environment).billctl_actor
        given = {"--ticket": self.ticket, "--reason": self.reason, "--actor": actor}
        missing = [name for name, value in given.items() if not value.strip()]
        if missing:
            end(
                f"--apply needs {', '.join(missing)} as well: every change is somebody's, for a reason",
                2,
                as_json=self.as_json,
            )
        if len(self.ticket) > TICKET_MAX:
            end(
                f"--ticket is longer than {TICKET_MAX} characters: give the ticket's number alone",
                2,
                as_json=self.as_json,
            )
        return Order(self.ticket, actor, self.reason)


def mend(command: str, wish: Wish, diagnose: Callable[[Desk, Screen], Awaitable[Diagnosis]]) -> NoReturn:
    """Diagnose, show the plan, and carry it out if that was asked for; ends the process with its exit status."""
    order = wish.order()
    screen = Screen(as_json=wish.as_json, with_sources=wish.with_sql)

    async def work(desk: Desk) -> Exit:
        report = Report(await diagnose(desk, screen))
        if order is not None and report.diagnosis.plan:
            report.carried_out = True
            report.applied = await carry_out(report.diagnosis.plan, order, screen)
        return screen.report(command, report)

    raise typer.Exit(_run(work, screen))


def look(command: str, wish: Wish, show: Callable[[Desk, Screen], Awaitable[View]]) -> NoReturn:
    """Show something that changes nothing."""
    screen = Screen(as_json=wish.as_json, with_sources=wish.with_sql)

    async def work(desk: Desk) -> Exit:
        return screen.view(command, await show(desk, screen))

    raise typer.Exit(_run(work, screen))


async def carry_out(plan: Any, order: Order, screen: Screen) -> list[Done]:
    """Each step in order; the first that fails ends it, for those behind it may rely on it."""
    applied: list[Done] = []
    with screen.progress() as bar:
        task, past = bar.add_task("applying", total=sum(step.units for step in plan)), 0
        screen.advance = partial(bar.advance, task)
        for step in plan:
            done = await _one(step, order)
            applied.append(done)
            past += step.units
            bar.update(task, completed=past)
            if not done.ok:
                break
    return applied


async def _one(step: Step, order: Order) -> Done:
    try:
        return Done(step, True, await step.act(order))
    except BillingError as error:
        return Done(step, False, refusal(error))
    except (NotDone, NoDatabase) as error:
        stopped = isinstance(error, Stopped)
        return Done(step, False, str(error), partly=isinstance(error, PartlyDone), stopped=stopped)
    except asyncio.CancelledError:
        # Ctrl-C ends the waiting and not the report: what was done before is said.
        return Done(step, False, STOPPED, partly=True, stopped=True)


def _run(work: Callable[[Desk], Awaitable[Exit]], screen: Screen) -> int:
    async def with_desk() -> Exit:
        async with open_desk(Connections.find(), say=screen.aside) as desk:
            return await work(desk)

    try:
        return int(asyncio.run(with_desk()))
    except (NotConnected, NoDatabase, NotThere) as error:
        end(str(error), Exit.FAILED, as_json=screen.as_json)
    except BillingError as error:
        # Steps tell of their own refusals; before them nothing was asked for that could have been done.
        end(told(error), Exit.FAILED, as_json=screen.as_json)
    except OSError as error:
        leave_complaining(error)
    except KeyboardInterrupt:
        end("stopped before anything was changed", Exit.INTERRUPTED, as_json=screen.as_json)


def end(message: str, status: int, *, as_json: bool) -> NoReturn:
    """Ends the command with a sentence on standard error, and for scripts as a document too."""
    print(harmless(message), file=sys.stderr)  # noqa: T201 - a command speaks
    if as_json:
        Screen(as_json=True).document({"error": message, "exit": int(status)})
    raise typer.Exit(int(status))
