"""What an operator sees: tables and a verdict, or one JSON document for scripts."""

import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from billctl.diagnosis import Diagnosis, Done, Exit, Report, Verdict, View

COLOURS = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.CRITICAL: "bold red",
    Verdict.UNKNOWN: "bold magenta",
}
# Where no terminal says how wide it is: pipes, logs and pages.
PLAIN_WIDTH = 160
# A terminal from this width on has room for every column.
SPACIOUS = 120
# More columns than this are read better from top to bottom, where there is one row.
COLUMNS_SIDE_BY_SIDE = 6
# Of what a shell says of a process that wrote into a closed pipe.
PIPE_CLOSED = 141
# Joiners that Indian scripts need; everything else that is not seen is shown by its number.
JOINERS = "\u200c\u200d"


class _Out(Console):
    def on_broken_pipe(self) -> None:
        """`| head` has seen enough."""
        leave_quietly()


class Screen:
    """Standard output; what is said while something runs goes to standard error, so that JSON stays JSON."""

    def __init__(self, *, as_json: bool = False, with_sources: bool = False) -> None:
        self.as_json = as_json
        self.with_sources = with_sources
        # One sheet keeps what it shows in UTF-8, whatever the shell's language is.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        tty = sys.stdout.isatty()
        self._out = _Out(width=None if tty else PLAIN_WIDTH, highlight=False, soft_wrap=not tty)
        self._aside = Console(stderr=True, highlight=False)
        # What a step of many changes calls after some of them.
        self.advance: Callable[[int], None] = lambda _changes: None

    def aside(self, line: str) -> None:
        """Something to know while waiting."""
        self._aside.print(Text(harmless(line)))

    def progress(self) -> Progress:
        """A bar for long work, on standard error; nothing where nobody watches."""
        return Progress(console=self._aside, transient=True, disable=not self._aside.is_terminal)

    def document(self, content: Mapping[str, Any]) -> None:
        """One JSON document."""
        text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
        # Within JSON these stand in strings alone.
        text = re.sub(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", _numbered, text)
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            leave_quietly()
        except OSError as error:
            leave_complaining(error)

    def table(
        self, title: str, rows: Sequence[Mapping[str, Any]], more: int = 0, *, upright: bool | None = None
    ) -> None:
        """Rows with their column names; none is said to be none, and how many are not shown."""
        heading = Text(harmless(title), style="bold")
        if not rows:
            self._out.print(heading.append(": none", style="not bold"))
            return
        if upright is None:
            upright = len(rows) == 1 and len(rows[0]) > COLUMNS_SIDE_BY_SIDE
        self._out.print(heading)
        self._print(_top_to_bottom(rows[0]) if upright else _side_by_side(rows))
        if more > 0:
            self._out.print(Text(f"and {more:,} more"))

    def line(self, text: str, style: str = "") -> None:
        """One line as it is, in a style of rich's."""
        self._out.print(Text(harmless(text, lines=True), style=style))

    def verdict(self, verdict: Verdict, summary: str) -> None:
        """How things stand, in one line."""
        self._out.print(Text(verdict.upper(), style=COLOURS[verdict]).append(f" {harmless(summary)}", "none"))

    def view(self, command: str, view: View) -> Exit:
        """Everything that a look has to show; answers its exit status."""
        if self.as_json:
            told = {"verdict": view.verdict.value, "summary": view.summary} if view.verdict else {}
            rows = {section.key: list(section.rows) for section in view.sections}
            more = {f"more_{section.key}": section.more for section in view.sections if section.more}
            following = {"next": list(view.next_steps)} if view.verdict or view.next_steps else {}
            self.document({"command": command, "subject": view.subject, **told, **rows, **more, **following})
            return view.exit
        for section in view.sections:
            left_out = {*section.aside, *(section.spare if self._out.width < SPACIOUS else ())}
            narrow = [
                {name: value for name, value in row.items() if name not in left_out} for row in section.rows
            ]
            self.table(section.title, narrow, section.more, upright=section.upright)
            if self.with_sources:
                self.line(section.source.strip(), "dim")
            self.line("")
        if view.verdict:
            self.verdict(view.verdict, view.summary)
        for step in view.next_steps:
            self.line(f"  next: {step}")
        return view.exit

    def report(self, command: str, report: Report) -> Exit:
        """Everything of one command that mends; answers its exit status."""
        if self.as_json:
            self.document(_document(command, report))
        else:
            self._diagnosis(report.diagnosis, carried_out=report.carried_out)
            for done in report.applied:
                self._done(done)
            if report.exit is Exit.PARTLY:
                self.line(
                    "Not all of it was done. Run it again with the same ticket: what was done stays as it is."
                )
        return report.exit

    def _print(self, table: Table) -> None:
        if self._out.is_terminal:
            self._out.print(table)
            return
        with self._out.capture() as captured:
            self._out.print(table)
        # Nobody's diff, page or log is to be full of blanks.
        for line in captured.get().splitlines():
            self._out.print(Text(line.rstrip()))

    def _diagnosis(self, diagnosis: Diagnosis, *, carried_out: bool) -> None:
        for fact in diagnosis.facts:
            self.table(fact.title, fact.rows)
            if self.with_sources:
                self.line(fact.source.strip(), "dim")
            self.line("")
        self.verdict(diagnosis.verdict, diagnosis.summary)
        for number, step in enumerate(diagnosis.plan, 1):
            self.line(f"  {number}. {step.does}  [touches {step.touches}]")
        if diagnosis.plan and not carried_out:
            self.line('Nothing was changed. To do it, add: --apply --ticket T-1 --reason "why"')
        for step_for_people in diagnosis.next_steps:
            self.line(f"  next: {step_for_people}")

    def _done(self, done: Done) -> None:
        self.line(
            f"  {'done' if done.ok else 'NOT DONE'}: {done.step.name}: {done.result}",
            "" if done.ok else "bold red",
        )


def leave_quietly() -> NoReturn:
    """Nobody reads on: ends the process, and Python does not complain of it either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(PIPE_CLOSED)


def leave_complaining(error: OSError) -> NoReturn:
    """A full disk behind `>`: whatever was asked for is done, and the same line again tells of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"the answer cannot be written: {error.strerror or error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(1)


def harmless(text: str, *, lines: bool = False) -> str:
    """The text with everything unseen shown by its number, so that no value moves a cursor or turns a line around."""
    kept = JOINERS + ("\n\t" if lines else "")
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if letter in kept or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        # As Python and JSON write it.
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )  # fmt: skip


def shown(value: Any) -> str:
    """A value as people read it; times in UTC to the second."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case timedelta():
            return str(timedelta(seconds=int(value.total_seconds())))
        case Decimal():
            return f"{value:.1f}" if value != value.to_integral_value() else str(int(value))
        case float():
            return f"{value:.1f}"
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
        case _:
            return str(value)


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        numbers = [row[name] for row in rows if row[name] is not None]
        right = bool(numbers) and all(isinstance(each, int | float | Decimal) for each in numbers)
        whole = name in {"id", "at"} or name.endswith("_at")  # what is copied, and what is compared
        table.add_column(
            Text(name),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=whole,
            min_width=len(name),
        )
    for row in rows:
        table.add_row(*(Text(harmless(shown(value))) for value in row.values()))
    return table


def _top_to_bottom(row: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row.items():
        table.add_row(Text(name), Text(harmless(shown(value))))
    return table


def _numbered(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return shown(value)


def _document(command: str, report: Report) -> dict[str, Any]:
    diagnosis = report.diagnosis
    return {
        "command": command,
        "subject": diagnosis.subject,
        "verdict": diagnosis.verdict.value,
        "summary": diagnosis.summary,
        "facts": {fact.title: list(fact.rows) for fact in diagnosis.facts},
        "plan": [{"step": step.name, "does": step.does, "touches": step.touches} for step in diagnosis.plan],
        "carried_out": report.carried_out,
        "applied": [
            {"step": done.step.name, "ok": done.ok, "result": done.result} for done in report.applied
        ],
        "next": list(diagnosis.next_steps),
        "exit": int(report.exit),
    }
