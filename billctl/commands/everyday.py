"""`billctl findings`, `tasks` and `jobs`: lists, and what operators do with one of them every day."""

import enum
from typing import Annotated

import typer

from billctl.commands.options import Limit, Tenant
from billctl.fixes import everyday
from billctl.fixes import finding as finding_fix
from billctl.looks import findings as finding_looks
from billctl.looks import jobs as job_looks
from billctl.looks import lists
from billctl.running import Actor, Apply, AsJson, Reason, Ticket, Wish, WithSql, look, mend

findings = typer.Typer(no_args_is_help=True, help="What the audits of all rooms found wrong.")
tasks = typer.Typer(no_args_is_help=True, help="What is owed to the provider and the ledger.")
jobs = typer.Typer(no_args_is_help=True, help="Recurring work: when it runs and what became of it.")

FindingId = Annotated[str, typer.Argument(metavar="FND", help="its id, fnd_…", show_default=False)]
TaskId = Annotated[str, typer.Argument(metavar="TSK", help="its id, tsk_…", show_default=False)]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="its name, such as reconcile", show_default=False)
]


class Severity(enum.StrEnum):
    """How bad a finding is."""

    WARNING = "warning"
    CRITICAL = "critical"


class TaskState(enum.StrEnum):
    """Which tasks."""

    OPEN = "open"
    PENDING = "pending"
    ABANDONED = "abandoned"
    COMPLETED = "completed"
    ALL = "all"


class Outcome(enum.StrEnum):
    """What became of a run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNIMPLEMENTED = "unimplemented"


@findings.command("list")
def list_findings(
    tenant: Tenant = "",
    check: Annotated[str, typer.Option("--check", help="only this check")] = "",
    severity: Annotated[Severity | None, typer.Option("--severity", help="only these")] = None,
    closed: Annotated[bool, typer.Option("--all", help="closed ones too")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Open findings of all rooms, most severe first."""
    look(
        "findings list",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: finding_looks.show_list(
            desk,
            tenant=tenant or None,
            check=check or None,
            severity=severity.value if severity else None,
            closed=closed,
            limit=limit,
        ),
    )


@findings.command("show")
def show_finding(finding: FindingId, as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """A finding with its evidence, what it means and what to do."""
    look(
        "findings show",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: finding_looks.show_one(desk, finding),
    )


@findings.command("resolve")
def resolve_finding(
    finding: FindingId,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Close a finding in your name. It mends nothing: `billctl fix finding` does."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("findings resolve", wish, lambda desk, _screen: everyday.resolve_finding(desk, finding))


@tasks.command("list")
def list_tasks(
    tenant: Tenant = "",
    state: Annotated[TaskState, typer.Option("--state", help="which; open: not done")] = TaskState.OPEN,
    limit: Limit = 50,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Tasks that are not done, oldest first."""
    look(
        "tasks list",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: lists.tasks(desk, tenant=tenant or None, state=state.value, limit=limit),
    )


@tasks.command("retry")
def retry_task(
    task: TaskId,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Ten attempts more, the first at once."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("tasks retry", wish, lambda desk, _screen: everyday.retry_task(desk, task))


@tasks.command("resolve")
def resolve_task(
    task: TaskId,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Close a task that a person settled elsewhere."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("tasks resolve", wish, lambda desk, _screen: everyday.resolve_task(desk, task))


@jobs.command("list")
def list_jobs(as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Every job, when it runs next and what became of its newest run."""
    look(
        "jobs list",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: job_looks.show_list(desk),
    )


@jobs.command("runs")
def list_runs(
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="only this job's", show_default=False)] = "",
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="only these")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """What ran, newest first, and why the newest failure failed."""
    look(
        "jobs runs",
        Wish(as_json=as_json, with_sql=with_sql),
        lambda desk, _screen: job_looks.show_runs(
            desk, job=job or None, outcome=outcome.value if outcome else None, limit=limit
        ),
    )


@jobs.command("run")
def run_job(
    job: JobName,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Without --apply what a run would do, by the job's own dry run; with it a run, waited for."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend(
        "jobs run",
        wish,
        lambda desk, screen: everyday.run_job(desk, screen, job, actor=actor, applying=apply),
    )


@jobs.command("pause")
def pause_job(
    job: JobName,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Stop a job's ticks until it is resumed."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("jobs pause", wish, lambda desk, _screen: everyday.pause_job(desk, job, pause=True))


@jobs.command("resume")
def resume_job(
    job: JobName,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Let a job's ticks run again; of those missed, the newest runs at once."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("jobs resume", wish, lambda desk, _screen: everyday.pause_job(desk, job, pause=False))


@jobs.command("schedule")
def schedule_job(
    job: JobName,
    cron: Annotated[
        str, typer.Argument(metavar="[CRON]", help='five fields in UTC, such as "0 * * * *"')
    ] = "",
    deadline: Annotated[
        int, typer.Option("--deadline", min=0, max=3600, help="seconds that each call may take; 0: as it is")
    ] = 0,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Change when a job runs, or how long its calls may take, from the next tick on."""
    if not cron and not deadline:
        raise typer.BadParameter("name a schedule, --deadline, or both")
    if cron and not (len(cron.split()) == 5 and job_looks.ticks(cron)):
        raise typer.BadParameter(f'{cron!r} is no schedule of five fields, such as "*/5 * * * *"')
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("jobs schedule", wish, lambda desk, _screen: everyday.schedule_job(desk, job, cron, deadline))


def fix_finding(
    finding: FindingId,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """The integrity audit found something: mend it, prove it, close it (runbook 2)."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("fix finding", wish, lambda desk, screen: finding_fix.diagnose(desk, screen, finding))
