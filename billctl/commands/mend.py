"""`billctl fix …`: the runbooks as commands."""

from typing import Annotated

import typer

from billctl.commands.options import zoned
from billctl.fixes import backlog, double_charge, escalation, over_debit, rotation, signatures, wrong_plan
from billctl.running import Actor, Apply, AsJson, Reason, Ticket, Wish, WithSql, mend

app = typer.Typer(
    no_args_is_help=True, help="Runbooks as commands: diagnose, show the plan, --apply carries it out."
)

Tenant = Annotated[str, typer.Argument(metavar="T", help="the tenant", show_default=False)]


@app.command("double-charge")
def fix_double_charge(
    tenant: Tenant,
    subscription: Annotated[
        str, typer.Option("--subscription", help="end only this one: sub_…", show_default=False)
    ] = "",
    payment: Annotated[
        str,
        typer.Option("--payment", help="give this one back, whatever was found: pay_…", show_default=False),
    ] = "",
    amount_paise: Annotated[
        int | None, typer.Option("--amount-paise", min=100, help="of --payment; default all that is left")
    ] = None,
    credits: Annotated[
        int | None, typer.Option("--credits", min=1, help="lost credits to give back, permanent ones")
    ] = None,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """A customer was charged twice: ends orphans, refunds the double payment (runbook 1)."""
    if amount_paise is not None and not payment:
        raise typer.BadParameter("--amount-paise needs --payment: say of which")
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    asked = double_charge.Asked(tenant, subscription, payment, amount_paise, credits)
    mend("fix double-charge", wish, lambda desk, _screen: double_charge.diagnose(desk, asked))


@app.command("escalation")
def fix_escalation(
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Past-due tenants that should have been put on free (runbook 6)."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("fix escalation", wish, lambda desk, _screen: escalation.diagnose(desk))


@app.command("wrong-plan")
def fix_wrong_plan(
    tenant: Tenant,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """A customer paid for one plan and has another: stale limits, missed events, changes not made (runbook 4)."""
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("fix wrong-plan", wish, lambda desk, _screen: wrong_plan.diagnose(desk, tenant))


@app.command("over-debit")
def fix_over_debit(
    action: Annotated[
        str, typer.Option("--action", help="what was debited: blog.generate", show_default=False)
    ],
    since: Annotated[
        str, typer.Option("--since", help="first moment: 2026-11-20T10:00Z", show_default=False)
    ],
    until: Annotated[
        str, typer.Option("--until", help="moment after the last: 2026-11-20T16:30Z", show_default=False)
    ],
    tenant: Annotated[str, typer.Option("--tenant", help="only this one's", show_default=False)] = "",
    cost: Annotated[
        int | None,
        typer.Option("--cost", min=0, max=10**12, help="what one should cost; default the published cost"),
    ] = None,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """An action was debited at the wrong cost: one refund of the difference for each debit (runbook 7)."""
    asked = over_debit.Asked(action, zoned("--since", since), zoned("--until", until), tenant, cost)
    if asked.since >= asked.until:
        raise typer.BadParameter("--since must be before --until")
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    mend("fix over-debit", wish, lambda desk, screen: over_debit.diagnose(desk, asked, screen))


@app.command("backlog")
def fix_backlog(
    replay_since: Annotated[
        str, typer.Option("--replay-since", help="deliver what came from here once more", show_default=False)
    ] = "",
    replay_until: Annotated[
        str, typer.Option("--replay-until", help="and before this moment", show_default=False)
    ] = "",
    event_type: Annotated[
        str, typer.Option("--event-type", help="only these: subscription.charged", show_default=False)
    ] = "",
    discard: Annotated[
        list[str] | None,
        typer.Option(
            "--discard", help="give up this dead letter and nothing else: dead_…", show_default=False
        ),
    ] = None,
    apply: Apply = False,
    ticket: Ticket = "",
    reason: Reason = "",
    actor: Actor = "",
    as_json: AsJson = False,
    with_sql: WithSql = False,
) -> None:
    """Webhooks wait, are dead letters, or stopped coming (runbook 5)."""
    if discard and (replay_since or replay_until or event_type):
        raise typer.BadParameter("--discard and a replay are two things: one after the other")
    if len(discard or ()) > backlog.DISCARDED_MAX:
        raise typer.BadParameter(f"at most {backlog.DISCARDED_MAX} letters at a time")
    if bool(replay_since) != bool(replay_until):
        raise typer.BadParameter("a replay needs both --replay-since and --replay-until")
    if event_type and not replay_since:
        raise typer.BadParameter("--event-type is for a replay: say --replay-since and --replay-until")
    replay = None
    if replay_since:
        replay = backlog.Range(
            zoned("--replay-since", replay_since), zoned("--replay-until", replay_until), event_type
        )
        if replay.since >= replay.until:
            raise typer.BadParameter("--replay-since must be before --replay-until")
    wish = Wish(apply, ticket, reason, actor, as_json, with_sql)
    if discard:
        mend("fix backlog", wish, lambda desk, _screen: backlog.discard(desk, tuple(dict.fromkeys(discard))))
    mend("fix backlog", wish, lambda desk, _screen: backlog.diagnose(desk, replay))


@app.command("signatures")
def fix_signatures(as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Signatures fail: who it is, and what a person does about it (runbook 3). It has no plan to apply."""
    wish = Wish(as_json=as_json, with_sql=with_sql)
    mend("fix signatures", wish, lambda desk, _screen: signatures.diagnose(desk))


@app.command("rotation")
def fix_rotation(as_json: AsJson = False, with_sql: WithSql = False) -> None:
    """Where a rotation of the webhook secret stands, and its next step. It has no plan to apply."""
    wish = Wish(as_json=as_json, with_sql=with_sql)
    mend("fix rotation", wish, lambda desk, _screen: rotation.diagnose(desk))
