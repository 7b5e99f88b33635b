"""Every check that a room's audit makes: what it means and what to do. The same words as docs/operations.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What a finding of this kind says."""

    means: str
    cure: str
    # The ledger freezes the account: nothing of it moves until somebody has looked.
    freezes: bool = False


UNKNOWN = Check("a check that this billctl does not know", "docs/operations.md, or an engineer")
LINES = "an engineer: compare the evidence with a backup; then billctl account unfreeze, and account adjust"

CHECKS = {
    "balance_mismatch": Check(
        "the balance that people read is not what the lots come to; no decision reads it",
        "rebuild the mirrors (runbook 2a)",
    ),
    "mirror_mismatch": Check(
        "a column that people read is not what the lots come to; no decision reads it",
        "rebuild the mirrors (runbook 2a)",
    ),
    "ledger_sum_mismatch": Check(
        "SUM(amount) of the transactions is not the balance", "find the missing or extra row (runbook 2b)"
    ),
    "stray_transaction": Check("a transaction that no line belongs to", "runbook 2b: an engineer"),
    "sequence_gap": Check("a line of the ledger is missing", LINES, freezes=True),
    "entry_mismatch": Check("a line of the ledger was changed", LINES, freezes=True),
    "chain_mismatch": Check("a line carries another hash than its content's", LINES, freezes=True),
    "time_went_back": Check("a line is dated before the line before it", LINES, freezes=True),
    "lot_mismatch": Check("a lot does not hold what its lines come to", LINES, freezes=True),
    "hold_mismatch": Check("a hold is not what its lines come to", LINES, freezes=True),
    "claim_mismatch": Check("a revocation's claim is not what its lines come to", LINES, freezes=True),
    "refund_exceeds_debit": Check("more was given back than was taken", LINES, freezes=True),
    "expired_spent": Check("credits were spent after their end", LINES, freezes=True),
    "duplicate_reference": Check(
        "one fact funded twice", "take the second grant back: billctl account adjust T --credits -N"
    ),
    "account_missing": Check("transactions of an account that is gone", "an engineer, and a backup"),
    "overdue_expiry": Check(
        "an end that nobody wrote down for an hour; the credits cannot be spent all the same",
        "run settle_expired: billctl jobs run settle_expired",
    ),
    "orphan_pending_sub": Check(
        "an upgrade was begun and nobody authorised it for three days", "cancel it (runbook 2c)"
    ),
    "paid_without_grant": Check(
        "captured money, or a month of a dripping year, without its credits",
        "retry its task, or give it back",
    ),
    "granted_without_payment": Check(
        "credits that name a payment we do not hold, or that only the ledger knows",
        "ask the provider (sync_provider); else billctl account adjust T --credits -N",
    ),
    "entitlements_differ": Check(
        "limits that are not those of plan, add-ons and overrides", "rebuild the entitlements"
    ),
    "active_without_entitlements": Check(
        "a tenant in good standing without any limits", "rebuild the entitlements"
    ),
    "stuck_task": Check("a task was given up", "retry it, or resolve it when it was settled elsewhere"),
    "overdue_task": Check(
        "a task is due for more than an hour, and nobody attempts it",
        "does reconcile run? then retry the task",
    ),
    "missed_escalation": Check(
        "a tenant is past due beyond the ladder's last step, and was not put on free",
        "run the escalation (runbook 6)",
    ),
    "stuck_checkout": Check(
        "an upgrade was authorised more than three days ago and is still not in force",
        "make it real if it is paid (runbook 4), cancel it if not",
    ),
    "two_live_subscriptions": Check(
        "two subscriptions may charge, and no task ends one", "end the one that nobody relies on (runbook 1)"
    ),
    "orphan_provider_sub": Check(
        "the provider has a subscription that names a tenant and that we did not begin",
        "cancel it (runbook 1)",
    ),
    "over_limit": Check(
        "a tenant uses more than its plan allows; nothing more can be used until it deletes or upgrades",
        "tell the customer, or set an override",
    ),
    "charged_after_end": Check(
        "money for a time after the subscription had ended, not given back",
        "give it back: billctl fix double-charge T --payment pay_…",
    ),
    "late_charge": Check(
        "a charge was heard of after its period; its credits live as long from then on",
        "nothing, or see why deliveries came so late",
    ),
    "charged_after_scheduled_end": Check(
        "the provider charged before it could be told of a scheduled end; the plan is kept to the new end",
        "give it back if the customer asks: billctl fix double-charge T --payment pay_…",
    ),
    "charge_without_subscription": Check(
        "money for a subscription that names a tenant and that we did not begin", "compare with the provider"
    ),
    "payment_not_held": Check(
        "the provider took money in a tenant's name for an order or subscription that we did not begin, as after a"
        " restore; our books do not hold it, and no credits were granted for it",
        "give it back in the provider's dashboard, or its credits: billctl account adjust T --credits N",
    ),
    "purchase_paid_twice": Check(
        "a pack's order was paid again; nothing was granted for it", "give the money back at the provider"
    ),
    "purchase_amount_mismatch": Check(
        "a pack's order was paid with another amount; nothing was granted for it",
        "give the money back at the provider",
    ),
    "charge_amount_mismatch": Check(
        "a charge of nothing, or in another currency than its plan's; no credits were granted for it",
        "look at the subscription in the provider's dashboard; give the money back there",
    ),
    "refund_failed": Check(
        "a refund was refused or failed; what a change had taken of credits for it came back",
        "pay back by another way",
    ),
    "unused_not_refundable": Check(
        "an upgrade left an unused part of a payment that is too old for the provider to refund",
        "pay back by another way, or let it be",
    ),
    "unused_was_spent": Check(
        "an upgrade left an unused part of a payment whose credits were spent", "nothing, or pay back by hand"
    ),
    "dispute_lost": Check("the bank took the money; the credits went with it", "nothing"),
}


def of(check_type: str) -> Check:
    """What is known of it."""
    return CHECKS.get(check_type, UNKNOWN)
