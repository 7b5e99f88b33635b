"""What an operator sees: tables and a verdict, or one JSON document for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from billctl.diagnosis import Diagnosis, Done, Exit, Report, Verdict

COLOURS = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.CRITICAL: "bold red",
    Verdict.UNKNOWN: "bold magenta",
}
# Where no terminal says how wide it is: pipes, logs and pages.
PLAIN_WIDTH = 160


class Screen:
    """Standard output; what is said while something runs goes to standard error, so that JSON stays JSON."""

    def __init__(self, *, as_json: bool = False, with_sources: bool = False) -> None:
        self.as_json = as_json
        self.with_sources = with_sources
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        self._out = Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty())
        self._aside = Console(stderr=True, highlight=False)

    def aside(self, line: str) -> None:
        """Something to know while waiting."""
        self._aside.print(escape(line))

    def progress(self) -> Progress:
        """A bar for long work, on standard error; nothing where nobody watches."""
        return Progress(console=self._aside, transient=True, disable=not self._aside.is_terminal)

    def document(self, content: Mapping[str, Any]) -> None:
        """One JSON document."""
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n")

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with their column names; none is said to be none."""
        if not rows:
            self._out.print(f"[bold]{escape(title)}[/bold]: none")
            return
        table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in rows[0]:
            number = all(isinstance(row[name], int | float | Decimal) for row in rows)
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(shown(value)) for value in row.values()))
        self._out.print(table)

    def line(self, text: str, style: str = "") -> None:
        """One line as it is, in a style of rich's."""
        self._out.print(escape(text), style=style or None)

    def report(self, command: str, report: Report) -> Exit:
        """Everything of one command; answers its exit status."""
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

    def _diagnosis(self, diagnosis: Diagnosis, *, carried_out: bool) -> None:
        for fact in diagnosis.facts:
            self.table(fact.title, fact.rows)
            if self.with_sources:
                self.line(fact.source.strip(), "dim")
            self.line("")
        self._out.print(
            f"[{COLOURS[diagnosis.verdict]}]{diagnosis.verdict.upper()}[/] {escape(diagnosis.summary)}"
        )
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


def shown(value: Any) -> str:
    """A value as people read it; times in UTC to the second."""
    match value:
        case None:
            return ""
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case timedelta():
            return str(timedelta(seconds=int(value.total_seconds())))
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
        case _:
            return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
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
