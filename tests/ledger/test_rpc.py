"""The ledger through its doors."""

import asyncio

import grpc
import pytest
from billing.ledger.v1 import ledger_funding_pb2_grpc
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types

from shared import errors
from tests.ledger.builders import a_debit, a_grant, in_days
from tests.ledger.conftest import SECRETS, RunningLedger, available


async def test_subscription_credits_are_spent_before_permanent_ones(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    await ledger.funding.GrantCredits(a_grant(tenant, 30, expires_at=in_days(30)))

    answer = await ledger.service.Debit(a_debit(tenant, 50))

    assert [(each.bucket, each.credits) for each in answer.transaction.buckets] == [
        (types.BUCKET_SUBSCRIPTION, -30),
        (types.BUCKET_PERMANENT, -20),
    ]
    assert answer.balance.available == 80
    assert answer.transaction.amount == -50
    assert not answer.replayed


async def test_the_same_key_answers_the_first_result(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    request = a_debit(tenant, 40)
    first = await ledger.service.Debit(request)
    await ledger.service.Debit(a_debit(tenant, 10))

    again = await ledger.service.Debit(request)

    assert again.replayed
    assert again.transaction == first.transaction
    assert again.balance == first.balance


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"credits": 41}, "credits"),
        ({"reason": "blog.edit"}, "reason"),
        ({"reference_id": "post-2"}, "reference_id"),
        ({"metadata": {"post": "2"}}, "metadata"),
        ({"if_seq": 9}, "if_seq"),
    ],
)
async def test_a_key_reused_for_something_else_is_refused_naming_the_field(
    ledger: RunningLedger, tenant: str, changes: dict[str, object], field: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    await ledger.service.Debit(a_debit(tenant, 40, idempotency_key="k"))

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(a_debit(tenant, **{"credits": 40, "idempotency_key": "k", **changes}))

    assert refusal.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert refusal.value.metadata["field"] == field
    assert await available(ledger, tenant) == 60


async def test_one_credit_too_many_is_refused_and_says_what_is_missing(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(a_debit(tenant, 11))

    assert refusal.value.reason == "INSUFFICIENT_CREDITS"
    assert refusal.value.metadata == {"available": "10", "requested": "11", "shortfall": "1"}
    assert await available(ledger, tenant) == 10


async def test_a_refusal_is_remembered_after_a_top_up(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    request = a_debit(tenant, 11)
    with pytest.raises(errors.FailedPrecondition):
        await ledger.service.Debit(request)
    await ledger.funding.GrantCredits(a_grant(tenant, 100))

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(request)

    assert refusal.value.reason == "INSUFFICIENT_CREDITS"
    assert refusal.value.metadata["replayed"] == "true"
    assert "decided_at" in refusal.value.metadata
    assert await available(ledger, tenant) == 110


async def test_min_credits_takes_what_there_is(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 7))

    answer = await ledger.service.Debit(a_debit(tenant, 10, min_credits=5))

    assert answer.transaction.amount == -7
    assert answer.balance.available == 0


async def test_a_dry_run_books_and_remembers_nothing(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))

    tried = await ledger.service.Debit(a_debit(tenant, 4, idempotency_key="k", dry_run=True))
    real = await ledger.service.Debit(a_debit(tenant, 4, idempotency_key="k"))

    assert tried.balance.available == real.balance.available == 6
    assert not real.replayed


async def test_a_condition_on_seq_refuses_what_was_decided_on_an_older_balance(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    await ledger.service.Debit(a_debit(tenant, 1, if_seq=1))

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(a_debit(tenant, 1, if_seq=1))

    assert (refusal.value.reason, refusal.value.metadata["actual"]) == ("CONDITION_FAILED", "2")


async def test_sixteen_callers_race_for_ten_credits_and_ten_win(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))

    results = await asyncio.gather(
        *(ledger.service.Debit(a_debit(tenant, 1)) for _ in range(16)), return_exceptions=True
    )

    refused = [each for each in results if isinstance(each, errors.FailedPrecondition)]
    assert len(refused) == 6
    assert {each.reason for each in refused} == {"INSUFFICIENT_CREDITS"}
    assert await available(ledger, tenant) == 0


async def test_one_key_from_thirty_two_callers_at_once_has_one_effect(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    request = a_debit(tenant, 3)

    answers = await asyncio.gather(*(ledger.service.Debit(request) for _ in range(32)))

    assert len({answer.transaction.id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert await available(ledger, tenant) == 97


async def test_a_payment_funds_once_whatever_key_it_comes_under(ledger: RunningLedger, tenant: str) -> None:
    first = await ledger.funding.GrantCredits(a_grant(tenant, 10, reference_id="razorpay:pay_x"))
    again = await ledger.funding.GrantCredits(a_grant(tenant, 10, reference_id="razorpay:pay_x"))

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.funding.GrantCredits(
            a_grant(tenant, 10, reference_id="razorpay:pay_x", idempotency_key="another")
        )

    assert again.replayed
    assert again.transaction == first.transaction
    assert refusal.value.reason == "DUPLICATE_REFERENCE"
    assert await available(ledger, tenant) == 10


async def test_credits_are_gone_at_their_expiry_without_any_job(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(0.4 / 86400)))
    await ledger.funding.GrantCredits(a_grant(tenant, 1))
    await asyncio.sleep(0.6)

    before = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))
    with pytest.raises(errors.FailedPrecondition):
        await ledger.service.Debit(a_debit(tenant, 2))
    listed = await ledger.service.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant))

    assert before.balance.available == before.balance.posted == 1
    assert [each.kind for each in listed.transactions] == [
        types.TRANSACTION_KIND_EXPIRY,
        types.TRANSACTION_KIND_GRANT,
        types.TRANSACTION_KIND_GRANT,
    ]
    assert sum(each.amount for each in listed.transactions) == 1


async def test_settle_expired_books_each_expiry_once(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(0.2 / 86400)))
    await asyncio.sleep(0.4)

    await ledger.maintenance.SettleExpired(maintenance_pb.SettleExpiredRequest(idempotency_key="job:1"))
    await ledger.maintenance.SettleExpired(maintenance_pb.SettleExpiredRequest(idempotency_key="job:2"))
    listed = await ledger.service.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant))

    assert [each.amount for each in listed.transactions] == [-10, 10]
    assert listed.transactions[0].status == types.TRANSACTION_STATUS_EXPIRED


async def test_a_past_balance_is_recomputed_from_the_lines(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    await ledger.service.Debit(a_debit(tenant, 3))
    await ledger.service.Debit(a_debit(tenant, 4))

    at_two = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant, as_of_seq=2))
    now = await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))

    assert (at_two.balance.available, at_two.balance.as_of_seq) == (7, 2)
    assert (now.balance.available, now.balance.as_of_seq) == (3, 3)


async def test_pages_of_transactions_meet_without_gap_or_overlap(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    for _ in range(6):
        await ledger.service.Debit(a_debit(tenant, 1))

    seen, token = [], ""
    while True:
        page = await ledger.service.ListTransactions(
            pb.ListTransactionsRequest(tenant_id=tenant, page_size=3, page_token=token)
        )
        seen += [each.last_seq for each in page.transactions]
        token = page.next_page_token
        if not token:
            break

    assert seen == [7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(errors.InvalidArgument):
        await ledger.service.ListTransactions(pb.ListTransactionsRequest(tenant_id=tenant, page_token="%%%"))


async def test_a_transaction_is_found_by_id_and_by_key(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    answer = await ledger.service.Debit(a_debit(tenant, 1, idempotency_key="mine"))

    by_key = await ledger.service.GetTransaction(
        pb.GetTransactionRequest(tenant_id=tenant, idempotency_key="mine")
    )
    by_id = await ledger.service.GetTransaction(
        pb.GetTransactionRequest(tenant_id=tenant, transaction_id=answer.transaction.id)
    )

    assert by_key.transaction == by_id.transaction == answer.transaction
    with pytest.raises(errors.NotFound):
        await ledger.service.GetTransaction(
            pb.GetTransactionRequest(tenant_id="somebody-else", idempotency_key="mine")
        )


async def test_an_unknown_tenant_is_not_found_and_not_remembered(ledger: RunningLedger, tenant: str) -> None:
    request = a_debit(tenant, 1)
    with pytest.raises(errors.NotFound) as refusal:
        await ledger.service.Debit(request)
    await ledger.funding.GrantCredits(a_grant(tenant, 10))

    assert refusal.value.reason == "UNKNOWN_TENANT"
    assert (await ledger.service.Debit(request)).balance.available == 9


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"credits": 0}, {"credits"}),
        ({"credits": -5}, {"credits"}),
        ({"credits": 10**13}, {"credits"}),
        ({"idempotency_key": ""}, {"idempotency_key"}),
        ({"reason": "Blog Publish"}, {"reason"}),
        ({"min_credits": 6}, {"min_credits"}),
        ({"metadata": {str(n): "" for n in range(17)}}, {"metadata"}),
        ({"credits": 0, "reason": "", "idempotency_key": ""}, {"credits", "reason", "idempotency_key"}),
    ],
)
async def test_malformed_requests_name_every_field(
    ledger: RunningLedger, tenant: str, changes: dict[str, object], fields: set[str]
) -> None:
    with pytest.raises(errors.InvalidArgument) as refusal:
        await ledger.service.Debit(a_debit(tenant, **changes))

    assert {field for field, _ in refusal.value.violations} == fields


async def test_an_expiry_in_the_past_is_refused(ledger: RunningLedger, tenant: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refusal:
        await ledger.funding.GrantCredits(a_grant(tenant, 10, expires_at=in_days(-1)))

    assert refusal.value.reason == "ALREADY_EXPIRED"
    with pytest.raises(errors.NotFound):  # a refusal has no effect: no account was opened either
        await ledger.service.GetBalance(pb.GetBalanceRequest(tenant_id=tenant))


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("wrong", grpc.StatusCode.UNAUTHENTICATED),
        (SECRETS["gateway_secret"], grpc.StatusCode.PERMISSION_DENIED),
        (SECRETS["operator_secret"], grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_only_rooms_may_fund(
    ledger: RunningLedger, tenant: str, key: str | None, code: grpc.StatusCode
) -> None:
    async with ledger.raw_channel() as channel:
        stub = ledger_funding_pb2_grpc.LedgerFundingServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.GrantCredits(
                a_grant(tenant), metadata=(("x-gateway-key", key),) if key is not None else None, timeout=5
            )

    assert refusal.value.code() == code
    listed = await ledger.funding.GrantCredits(a_grant(tenant, 1))
    assert listed.transaction.first_seq == 1


async def test_a_grant_answers_the_lot_it_made_and_a_repeat_the_same(
    ledger: RunningLedger, tenant: str
) -> None:
    request = a_grant(tenant, 10, expires_at=in_days(3))

    first = await ledger.funding.GrantCredits(request)
    await ledger.service.Debit(a_debit(tenant, 4))
    again = await ledger.funding.GrantCredits(request)

    assert (first.lot.lot, first.lot.granted, first.lot.remaining) == (1, 10, 10)
    assert first.lot.expires_at == request.expires_at
    assert again.replayed
    assert again.lot == first.lot


async def test_a_dry_run_tells_what_its_key_would_be_told(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    booked = await ledger.service.Debit(a_debit(tenant, 4, idempotency_key="k"))

    repeated = await ledger.service.Debit(a_debit(tenant, 4, idempotency_key="k", dry_run=True))
    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(a_debit(tenant, 5, idempotency_key="k", dry_run=True))

    assert repeated.replayed
    assert repeated.transaction == booked.transaction
    assert refusal.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_a_key_belongs_to_one_kind_of_operation(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 10, idempotency_key="k"))

    with pytest.raises(errors.FailedPrecondition) as refusal:
        await ledger.service.Debit(a_debit(tenant, 1, idempotency_key="k"))

    assert (refusal.value.reason, refusal.value.metadata["field"]) == ("IDEMPOTENCY_KEY_REUSED", "kind")
