"""Rupees and credits: what the provider took is what we granted, and what it gave back is what we took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from zoneinfo import ZoneInfo

from tests.year.evidence import Evidence, Row

INDIA = ZoneInfo("Asia/Kolkata")
TOKEN_PAISE_MAX = 500
GST = Fraction(118, 100)


def sales(evidence: Evidence) -> dict[str, Row]:
    """Every captured payment that bought something, with what it must have brought, from the provider's word alone."""
    found = {}
    for payment in evidence.provider["payments"].values():
        if payment["status"] in ("captured", "refunded") and not is_token_payment(evidence, payment):
            found[payment["id"]] = payment | _bought(evidence, payment)
    return found


def is_token_payment(evidence: Evidence, payment: Row) -> bool:
    """The rupee that a bank takes to prove a mandate: no invoice, an order of nobody's, and it goes back at once."""
    order = evidence.provider["orders"][payment["order_id"]]
    return not payment["invoice_id"] and not order["receipt"] and payment["amount"] <= TOKEN_PAISE_MAX


def _bought(evidence: Evidence, payment: Row) -> Row:
    if not payment["invoice_id"]:
        order = evidence.provider["orders"][payment["order_id"]]
        notes = order["notes"] or {}
        pack = evidence.catalogue["credit_packs"].get(notes.get("pack"), {"credits": -1, "total_rupees": -1})
        return {
            "tenant_id": notes.get("tenant_id"),
            "price": pack["total_rupees"] * 100,
            "credits": pack["credits"],
            "bucket": "permanent",
            "what": f"pack {notes.get('pack')}",
            "months": None,
        }
    invoice = evidence.provider["invoices"][payment["invoice_id"]]
    notes = evidence.provider["subscriptions"][invoice["subscription_id"]]["notes"]
    plan, cycle = evidence.catalogue["plans"][notes["plan_code"]], notes["cycle"]
    drips = cycle == "yearly" and plan.get("credit_cadence") == "monthly"
    return {
        "tenant_id": notes["tenant_id"],
        "price": int(plan[f"{cycle}_rupees"] * 100 * GST),
        "credits": plan["base_credits"] * (12 if cycle == "yearly" else 1),
        "bucket": "subscription",
        "what": f"{notes['plan_code']} {cycle}",
        "months": plan["base_credits"] if drips else None,
    }


def payments(evidence: Evidence) -> Iterator[str]:
    """Every captured rupee has one row and one grant, here and in the ledger; and nothing is funded by no rupee."""
    bought = sales(evidence)
    mirrored = {row["id"]: row for row in evidence.tables["payments"]}
    granted = _by(evidence.tables["grants"], "payment_id")
    booked = _by(_posted(evidence, "grant"), "reference_id")
    for payment_id, sale in bought.items():
        whose = f"{payment_id} of {sale['tenant_id']} ({sale['what']})"
        if sale["amount"] != sale["price"]:
            yield f"{whose}: the provider took {sale['amount']} paise, the price is {sale['price']}"
        row = mirrored.get(payment_id)
        if row is None:
            yield f"{whose}: captured at the provider, and we have no payment"
        elif (row["tenant_id"], row["amount_paise"]) != (sale["tenant_id"], sale["amount"]):
            yield f"{whose}: we hold it as {row['amount_paise']} paise of {row['tenant_id']}"
        if sale["months"] is None:
            yield from _granted_once(whose, sale, granted[payment_id], booked[f"razorpay:{payment_id}"])
        else:
            yield from _granted_by_month(whose, sale, granted[payment_id])
    for payment_id in mirrored.keys() - bought.keys():
        yield f"{payment_id}: we hold a payment that the provider never captured as a sale"
    for payment_id in granted.keys() - bought.keys() - {None}:
        yield f"{payment_id}: credits were granted for a payment that is no sale"


def _granted_once(whose: str, sale: Row, grants: list[Row], booked: list[Row]) -> Iterator[str]:
    for where, rows, amount in (("here", grants, "credits"), ("in the ledger", booked, "amount")):
        if len(rows) != 1:
            yield f"{whose}: {len(rows)} grants {where}, it must be one"
        for row in rows:
            if (row["tenant_id"], row[amount]) != (sale["tenant_id"], sale["credits"]):
                yield f"{whose}: granted {row[amount]} to {row['tenant_id']} {where}, it must be {sale['credits']}"
    for row in grants:
        if row["bucket"] != sale["bucket"]:
            yield f"{whose}: granted into the {row['bucket']} bucket"


def _granted_by_month(whose: str, sale: Row, grants: list[Row]) -> Iterator[str]:
    if len(grants) > 12:
        yield f"{whose}: {len(grants)} months of one year were granted"
    for row in grants:
        if row["credits"] != sale["months"]:
            yield f"{whose}: a month of it brought {row['credits']}, it must be {sale['months']}"


def grants(evidence: Evidence) -> Iterator[str]:
    """Every grant that we decided is in the ledger once and equal, and the ledger has no other."""
    ours = {(row["tenant_id"], row["reference_id"]): row for row in evidence.tables["grants"]}
    theirs = Counter((row["tenant_id"], row["reference_id"]) for row in _posted(evidence, "grant"))
    amounts = {(row["tenant_id"], row["reference_id"]): row["amount"] for row in _posted(evidence, "grant")}
    for which in sorted(ours.keys() | theirs.keys()):
        if not theirs[which] and _lapsed(evidence, ours[which]):
            continue
        if theirs[which] != 1:
            yield f"grant {which[1]} of {which[0]}: {theirs[which]} times in the ledger, it must be once"
        elif which not in ours:
            yield f"grant {which[1]} of {which[0]}: in the ledger, and we never decided it"
        elif amounts[which] != ours[which]["credits"]:
            yield f"grant {which[1]} of {which[0]}: {amounts[which]} in the ledger, {ours[which]['credits']} here"
    yield from _unpaid(evidence, ours)


def _lapsed(evidence: Evidence, grant: Row) -> bool:
    """Whether it cost nothing and was over before it could arrive, which takes a room that was killed meanwhile."""
    is_over = grant["expires_at"] is not None and grant["expires_at"] < evidence.now
    return evidence.told.kills > 0 and grant["payment_id"] is None and is_over


def _unpaid(evidence: Evidence, ours: dict[tuple[str, str], Row]) -> Iterator[str]:
    """Trials bring the plan's trial credits, free months the free plan's, and who is on free has this month's."""
    free, month = evidence.catalogue["plans"]["free"], evidence.now.astimezone(INDIA).strftime("%Y-%m")
    for (tenant, reference), row in ours.items():
        expected = row["credits"]
        if row["kind"] == "trial":
            theirs = evidence.provider["subscriptions"].get(reference.removeprefix("trial:"))
            if theirs is None:
                yield f"grant {reference} of {tenant}: a trial of a subscription that the provider does not have"
            else:
                expected = evidence.catalogue["plans"][theirs["notes"]["plan_code"]]["trial_credits"]
        elif row["kind"] == "free_month":
            expected = free["base_credits"]
        if row["credits"] != expected:
            yield f"grant {reference} of {tenant}: {row['credits']} credits, it must be {expected}"
    for standing in evidence.tables["standings"]:
        tenant = standing["tenant_id"]
        on_free = standing["plan_id"] == "free" and standing["status"] in ("active", "canceled")
        if on_free and (tenant, f"free:{tenant}:{month}") not in ours:
            yield f"{tenant}: on free, without the credits of {month}"


def given_back(evidence: Evidence) -> Iterator[str]:
    """Refunds and disputes of sales are known, and took their share of the credits, no more and no less."""
    bought = sales(evidence)
    refunds = {
        row["provider_refund_id"]: row for row in evidence.tables["refunds"] if row["provider_refund_id"]
    }
    disputes = {row["id"]: row for row in evidence.tables["disputes"]}
    claimed: defaultdict[str, int] = defaultdict(int)
    for refund in evidence.provider["refunds"].values():
        if refund["payment_id"] not in bought:
            continue
        row, proration = refunds.get(refund["id"]), _is_proration(refund)
        if row is None:
            yield f"{refund['id']}: the provider refunded {refund['payment_id']}, and we do not know it"
        elif (row["status"], row["amount_paise"]) != (refund["status"], refund["amount"]):
            yield f"{refund['id']}: {refund['status']} {refund['amount']}; here {row['status']} {row['amount_paise']}"
        elif (row["kind"] == "proration") != proration:
            yield f"{refund['id']}: a {row['kind']} here, its notes say {refund['notes']}"
        if refund["status"] == "processed" and not proration:
            claimed[refund["payment_id"]] += refund["amount"]
    for refund_id in refunds.keys() - evidence.provider["refunds"].keys():
        yield f"{refund_id}: we hold a refund that the provider does not have"
    for dispute in evidence.provider["disputes"].values():
        row = disputes.get(dispute["id"])
        if row is None or row["status"] != dispute["status"]:
            yield f"{dispute['id']}: {dispute['status']} at the provider, {row and row['status']} here"
        if dispute["status"] == "lost":
            claimed[dispute["payment_id"]] += dispute["amount_deducted"]
    yield from _taken(evidence, bought, claimed)


def _is_proration(refund: Row) -> bool:
    return isinstance(refund["notes"], dict) and refund["notes"].get("kind") == "proration"


def _taken(evidence: Evidence, bought: dict[str, Row], claimed: dict[str, int]) -> Iterator[str]:
    taken: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in evidence.tables["revocations"]:
        if row["restored_at"] is None:
            taken[row["tenant_id"], row["grant_reference_id"]][row["cause"]] += row["credits"]
    for grant in evidence.tables["grants"]:
        causes = taken.pop((grant["tenant_id"], grant["reference_id"]), Counter())
        by_claims, prorated = causes["refund"] + causes["dispute"], causes["proration"]
        sale = bought.get(grant["payment_id"] or "")
        if sale is None:
            if causes:
                yield f"{grant['reference_id']} of {grant['tenant_id']}: {dict(causes)} taken back, and it was never paid"
            continue
        share = grant["credits"] * min(sale["amount"], claimed[sale["id"]]) // sale["amount"]
        if by_claims != share and by_claims != min(share, grant["credits"] - prorated):
            yield (
                f"{grant['reference_id']} of {grant['tenant_id']}: {claimed[sale['id']]} of {sale['amount']} paise"
                f" went back, so {share} of {grant['credits']} credits must be taken back; it was {by_claims}"
            )
        if by_claims + prorated > grant["credits"]:
            yield f"{grant['reference_id']} of {grant['tenant_id']}: more taken back than was granted"
    for (tenant, reference), causes in taken.items():
        yield f"{reference} of {tenant}: {dict(causes)} taken back of a grant that there is not"


def revocations(evidence: Evidence) -> Iterator[str]:
    """Every revocation that we decided is in the ledger once and asks for the same, and the ledger has no other."""
    ours = {(row["tenant_id"], row["reference_id"]): row for row in evidence.tables["revocations"]}
    theirs = {(row["tenant_id"], row["reference_id"]): row for row in evidence.tables["ledger_revocations"]}
    for which in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(which), theirs.get(which)
        if other is None or mine is None:
            place = "the ledger" if other is None else "our decisions"
            yield f"revocation {which[1]} of {which[0]}: missing in {place}"
        elif (mine["grant_reference_id"], mine["credits"]) != (other["grant_reference_id"], other["asked"]):
            yield (
                f"revocation {which[1]} of {which[0]}: {mine['credits']} of {mine['grant_reference_id']} here,"
                f" {other['asked']} of {other['grant_reference_id']} in the ledger"
            )
        elif (mine["restored_at"] is not None) != bool(other["restored_transaction_id"]):
            yield f"revocation {which[1]} of {which[0]}: restored on one side only"


def acknowledged(evidence: Evidence) -> Iterator[str]:
    """Every debit and adjustment that a caller was told of is booked once, for what was asked."""
    for kind, told in (("debit", evidence.debits), ("adjustment", evidence.adjustments)):
        booked = defaultdict(list)
        for row in _posted(evidence, kind):
            booked[row["tenant_id"], row["idempotency_key"]].append(row["amount"])
        for which, credits in told.items():
            expected = -credits if kind == "debit" else credits
            if booked[which] != [expected]:
                yield f"{kind} {which[1]} of {which[0]}: told {expected}, booked {booked[which]}"


def documents(evidence: Evidence) -> Iterator[str]:
    """A tax invoice for each sale, a credit note for each refund of one, numbers without gaps in each year."""
    invoices = {
        row["payment_id"]: row for row in evidence.tables["documents"] if row["kind"] == "tax_invoice"
    }
    notes = {row["refund_id"]: row for row in evidence.tables["documents"] if row["kind"] == "credit_note"}
    bought = sales(evidence)
    for payment_id, sale in bought.items():
        if payment_id not in invoices or invoices[payment_id]["total_paise"] != sale["amount"]:
            yield f"{payment_id} of {sale['tenant_id']}: no tax invoice over {sale['amount']} paise"
    for payment_id in invoices.keys() - bought.keys():
        yield f"{payment_id}: an invoice for no sale"
    for refund in evidence.tables["refunds"]:
        if refund["status"] == "processed" and refund["tenant_id"] and refund["id"] not in notes:
            yield f"{refund['provider_refund_id']} of {refund['tenant_id']}: no credit note"
    serials = defaultdict(list)
    for row in evidence.tables["documents"]:
        serials[row["financial_year"], row["kind"]].append(row["serial"])
    for which, numbers in serials.items():
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            yield f"{which[1]} numbers of {which[0]} have gaps or repeat"


def _posted(evidence: Evidence, kind: str) -> list[Row]:
    return [
        row
        for row in evidence.tables["ledger_transactions"]
        if row["kind"] == kind and row["tx_status"] != "rejected"
    ]


def _by(rows: list[Row], column: str) -> defaultdict[str, list[Row]]:
    found = defaultdict(list)
    for row in rows:
        found[row[column]].append(row)
    return found
