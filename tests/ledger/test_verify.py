"""VerifyLedger recomputes a tenant from its lines, names what was changed, and says what it could not verify."""

from __future__ import annotations

import pytest
from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from google.protobuf.json_format import MessageToDict

from services.ledger.actions import findings as actions_findings
from services.ledger.rules import chain, verify
from services.ledger.store import history
from services.ledger.store.audit.found import snapshot
from shared import errors
from tests.ledger.builders import a_grant
from tests.ledger.conftest import RunningLedger
from tests.ledger.tampering import (
    FREEZES_NOTHING,
    TAMPERED,
    Hand,
    a_history,
    everything,
    forge,
    run,
    stage,
    verify_one,
)

NUMBERS = ("seq", "lot", "d_posted", "d_held", "lot_posted_after", "lot_held_after")
NUMBERS += ("account_posted_after", "account_held_after")


async def test_everything_that_the_ledger_does_is_verified(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await everything(ledger, tenant)

    verification = await verify_one(ledger, tenant)

    assert ([each.check_type for each in verification.findings], list(verification.not_verified)) == ([], [])
    assert verification.verified
    [account] = hand.look("SELECT seq, chain_head FROM tenant_credits WHERE tenant_id = %s", tenant)
    assert verification.entries == account["seq"] > 20
    assert verification.chain_head == account["chain_head"].hex()


async def test_two_ways_to_write_the_layout_down_agree(ledger: RunningLedger, tenant: str) -> None:
    await a_history(ledger, tenant)
    async with snapshot(ledger.ledger.engine) as db:
        lines = await history.list_lines(db, tenant, after=0, page=100)

    head = verify.GENESIS
    for line in lines:
        header = line.header
        assert header is not None
        texts = (header.id, header.kind, header.idempotency_key, header.reason, header.reference_id)
        numbers = [getattr(line, name) for name in NUMBERS]
        words = chain.words(*texts)
        written = chain.line_hash(head, *numbers, at=line.at, amount=header.amount, words=words)
        assert verify.line_hash(head, line, header) == written == line.hash
        head = line.hash


@pytest.fixture(scope="module")
async def tampered(ledger: RunningLedger, hand: Hand) -> dict[str, str]:
    """What was done by hand; no audit has looked."""
    return await stage(ledger, hand, "verified", audited=False)


@pytest.mark.parametrize("what", TAMPERED)
async def test_verification_names_what_was_changed(
    ledger: RunningLedger, hand: Hand, tampered: dict[str, str], what: str
) -> None:
    tenant = tampered[what]

    verification = await verify_one(ledger, tenant)

    assert not verification.verified
    named = {finding.check_type: finding for finding in verification.findings}
    assert TAMPERED[what][1] in named
    assert named[TAMPERED[what][1]].id == hand.findings(tenant)[TAMPERED[what][1]]["id"], "it is opened"
    assert (hand.state(tenant) == "active") == (what in FREEZES_NOTHING)


async def test_what_was_found_about_a_mirror_has_exactly_the_runbooks_words(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    hand.run("UPDATE tenant_credits SET balance = 99 WHERE tenant_id = %s", tenant)
    hand.run(TAMPERED["transaction that no operation wrote"][0], tenant)

    verification = await verify_one(ledger, tenant)
    found = {each.check_type: MessageToDict(each.observed) for each in verification.findings}

    assert found["balance_mismatch"] == {"balance": 99, "expected_balance": 85}
    assert found["ledger_sum_mismatch"] == {"balance": 85, "ledger_sum": 92}


@pytest.mark.parametrize("all_of_them", [False, True], ids=["one hash", "every hash and the head"])
async def test_a_forged_hash_is_found_though_it_was_recomputed(
    ledger: RunningLedger, hand: Hand, tenant: str, all_of_them: bool
) -> None:
    await a_history(ledger, tenant)
    await run(ledger)
    await forge(ledger, hand, tenant, all_of_them=all_of_them)

    await verify_one(ledger, tenant)

    assert set(hand.findings(tenant)) == {"chain_mismatch"}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "DELETE FROM credit_entries WHERE tenant_id = %s AND seq IN (3, 4)",
            ["lines 3–4: they are missing", "line 5: its hash covers a line that is missing"],
        ),
        ("DELETE FROM credit_entries WHERE tenant_id = %s AND seq >= 4", ["lines 4–5: they are missing"]),
    ],
)
async def test_lines_that_are_missing_are_said_to_be_unverified(
    ledger: RunningLedger, hand: Hand, tenant: str, statement: str, said: list[str]
) -> None:
    await a_history(ledger, tenant)
    hand.run(statement, tenant)

    verification = await verify_one(ledger, tenant)

    assert list(verification.not_verified) == said
    assert "sequence_gap" in {each.check_type for each in verification.findings}
    assert not verification.verified


async def test_a_hash_that_cannot_be_recomputed_is_said_to_be_unverified(
    ledger: RunningLedger, hand: Hand, tenant: str
) -> None:
    await a_history(ledger, tenant)
    [row] = hand.look("SELECT id FROM credit_transactions WHERE tenant_id = %s AND first_seq = 5", tenant)
    hand.run("DELETE FROM credit_transactions WHERE tenant_id = %s AND first_seq = 5", tenant)

    verification = await verify_one(ledger, tenant)

    assert list(verification.not_verified) == [
        f"line 5: transaction {row['id']}, which its hash covers, is missing"
    ]


async def test_all_tenants_are_verified_a_page_at_a_time(ledger: RunningLedger, tenant: str) -> None:
    mine = [f"{tenant}_{number}" for number in range(3)]
    for each in mine:
        await ledger.funding.GrantCredits(a_grant(each, 10))
    seen, token, pages = [], "", 0
    while token or not pages:
        answer = await ledger.admin.VerifyLedger(admin_pb.VerifyLedgerRequest(page_size=50, page_token=token))
        seen += [each.tenant_id for each in answer.verifications]
        token, pages = answer.next_page_token, pages + 1

    assert set(mine) <= set(seen)
    assert seen == sorted(set(seen))
    with pytest.raises(errors.NotFound):
        await verify_one(ledger, f"{tenant}_nobody")


async def test_what_the_time_was_too_short_for_is_said(
    ledger: RunningLedger, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_history(ledger, tenant)
    monkeypatch.setattr("services.ledger.actions.findings.LINES_PAGE", 2)

    [verification], _ = await actions_findings.verify_ledger(
        ledger.ledger, tenant_id=tenant, after="", page=1, time_left_seconds=0
    )

    assert verification.not_verified == ("ran out of time after line 2",)
    assert not verification.verified
    assert verification.findings == ()
