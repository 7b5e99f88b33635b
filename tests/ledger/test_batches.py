"""Batches, groups and streams of debits over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import ledger_pb2_grpc

from shared.errors import InvalidArgument
from tests.ledger.builders import a_batch, a_debit, a_grant
from tests.ledger.conftest import SECRETS, RunningLedger, available


def told(response: pb.BatchDebitResponse | pb.StreamDebitsResponse) -> list[str]:
    """What each item was told, in short."""
    return [
        f"{-each.debit.transaction.amount}{'r' if each.debit.replayed else ''}"
        if each.WhichOneof("result") == "debit"
        else each.refusal.reason
        for each in response.results
    ]


async def test_every_item_of_a_batch_has_its_own_result_in_order(ledger: RunningLedger, tenant: str) -> None:
    other = f"{tenant}-other"
    await ledger.funding.GrantCredits(a_grant(tenant, 10))
    await ledger.funding.GrantCredits(a_grant(other, 10))
    same = a_debit(tenant, 3)
    batch = a_batch(
        same, a_debit(other, 4), a_debit(tenant, 8), same, a_debit(f"{tenant}-nobody", 1), a_debit(tenant, 7)
    )

    first = await ledger.service.BatchDebit(batch)
    again = await ledger.service.BatchDebit(batch)

    assert told(first) == ["3", "4", "INSUFFICIENT_CREDITS", "3r", "UNKNOWN_TENANT", "7"]
    assert first.results[2].refusal.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert first.results[2].refusal.metadata["shortfall"] == "1"
    assert told(again) == ["3r", "4r", "INSUFFICIENT_CREDITS", "3r", "UNKNOWN_TENANT", "7r"]
    assert (await available(ledger, tenant), await available(ledger, other)) == (0, 6)


async def test_a_group_is_applied_whole_or_not_at_all(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    group = a_batch(a_debit(tenant, 50), a_debit(tenant, 60), a_debit(tenant, 45), group_id="order-1")
    alone = a_debit(tenant, 1)
    group.items.append(pb.BatchDebitItem(debit=alone))

    for _ in range(2):
        answer = await ledger.service.BatchDebit(group)
        assert told(answer)[:3] == ["GROUP_ABORTED", "INSUFFICIENT_CREDITS", "GROUP_ABORTED"]
        assert answer.results[0].refusal.metadata == {
            "group_id": "order-1",
            "culprit": group.items[1].debit.idempotency_key,
        }
    assert told(answer)[3] == "1r"
    assert await available(ledger, tenant) == 99
    whole = a_batch(a_debit(tenant, 50), a_debit(tenant, 49), group_id="order-2")
    assert told(await ledger.service.BatchDebit(whole)) == ["50", "49"]
    assert told(await ledger.service.BatchDebit(whole)) == ["50r", "49r"]
    assert await available(ledger, tenant) == 0


async def test_what_was_done_before_stays_when_its_group_is_refused(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    done = a_debit(tenant, 30)
    await ledger.service.Debit(done)

    answer = await ledger.service.BatchDebit(
        a_batch(a_debit(tenant, 5), a_debit(tenant, 900), done, group_id="g")
    )

    assert told(answer) == ["GROUP_ABORTED", "INSUFFICIENT_CREDITS", "30r"]
    assert await available(ledger, tenant) == 70


async def test_a_group_is_one_tenants(ledger: RunningLedger, tenant: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await ledger.service.BatchDebit(a_batch(a_debit(tenant, 1), a_debit(f"{tenant}-2", 1), group_id="g"))
    assert refused.value.violations[0][0] == "items[1].debit.tenant_id"


async def test_a_batch_names_the_item_that_is_malformed(ledger: RunningLedger, tenant: str) -> None:
    batch = a_batch(a_debit(tenant, 1), a_debit(tenant, 0), a_debit(tenant, 1, dry_run=True))

    with pytest.raises(InvalidArgument) as refused:
        await ledger.service.BatchDebit(batch)

    fields = [name for name, _ in refused.value.violations]
    assert fields[0] == "items[1].debit.credits"
    assert any(name.startswith("items[2]") for name in fields)


async def test_a_thousand_items_over_many_tenants(ledger: RunningLedger, tenant: str) -> None:
    tenants = [f"{tenant}-{number}" for number in range(20)]
    await asyncio.gather(*(ledger.funding.GrantCredits(a_grant(each, 100)) for each in tenants))
    batch = a_batch(*(a_debit(tenants[number % 20], 1) for number in range(1000)))

    answer = await ledger.service.BatchDebit(batch, timeout=60)

    assert told(answer) == ["1"] * 1000
    seqs = [
        each.debit.transaction.first_seq
        for each in answer.results
        if each.debit.transaction.tenant_id == tenants[3]
    ]
    assert seqs == sorted(seqs), "those of one tenant are decided in their order"
    assert {await available(ledger, each) for each in tenants} == {50}


async def batches(
    tenant: str, first: int, count: int, size: int = 3
) -> AsyncIterator[pb.StreamDebitsRequest]:
    for number in range(first, first + count):
        items = a_batch(
            *(a_debit(tenant, 1, idempotency_key=f"s{number}-{each}") for each in range(size))
        ).items
        yield pb.StreamDebitsRequest(number=number, items=items)


async def test_a_stream_answers_in_order_and_resending_is_safe(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 1000))
    metadata = [("x-gateway-key", SECRETS["gateway_secret"])]
    async with ledger.raw_channel() as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)

        answers = [each async for each in stub.StreamDebits(batches(tenant, 7, 30), metadata=metadata)]
        assert [each.number for each in answers] == list(range(7, 37))
        assert {outcome for each in answers for outcome in told(each)} == {"1"}

        call = stub.StreamDebits(batches(tenant, 30, 40), metadata=metadata)
        seen = [await anext(aiter(call)) for _ in range(3)]
        call.cancel()
        assert [told(each) for each in seen] == [["1r"] * 3] * 3

        again = [each async for each in stub.StreamDebits(batches(tenant, 30, 40), metadata=metadata)]
        assert [each.number for each in again] == list(range(30, 70))
    assert await available(ledger, tenant) == 1000 - 63 * 3


async def test_a_stream_out_of_step_is_told_which_number_was_expected(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 1000))

    async def skipping() -> AsyncIterator[pb.StreamDebitsRequest]:
        for number in (1, 3):
            yield pb.StreamDebitsRequest(number=number, items=a_batch(a_debit(tenant, 1)).items)

    async with ledger.raw_channel() as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        call = stub.StreamDebits(skipping(), metadata=[("x-gateway-key", SECRETS["gateway_secret"])])
        # What went before had an effect, which a refusal alone would deny.
        assert told(await anext(aiter(call))) == ["1"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(call))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "must be 2" in (refused.value.details() or "")
    assert await available(ledger, tenant) == 999


async def test_a_malformed_batch_ends_its_stream_once_those_before_it_are_answered(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 1000))

    async def malformed_at_last() -> AsyncIterator[pb.StreamDebitsRequest]:
        for number in range(1, 6):
            yield pb.StreamDebitsRequest(number=number, items=a_batch(a_debit(tenant, 1)).items)
        yield pb.StreamDebitsRequest(number=6)

    answered = []

    async def follow(call: grpc.aio.StreamStreamCall) -> None:
        async for each in call:
            answered.append(each.number)

    async with ledger.raw_channel() as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        metadata = [("x-gateway-key", SECRETS["gateway_secret"])]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await follow(stub.StreamDebits(malformed_at_last(), metadata=metadata))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert answered == [1, 2, 3, 4, 5]
    assert await available(ledger, tenant) == 995


async def test_a_refused_group_that_is_asked_again_has_the_same_culprit(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.GrantCredits(a_grant(tenant, 100))
    group = a_batch(a_debit(tenant, 50), a_debit(tenant, 60), group_id="g")
    first = await ledger.service.BatchDebit(group)
    await ledger.service.Debit(a_debit(tenant, 80))

    again = await ledger.service.BatchDebit(group)

    assert told(first) == told(again) == ["GROUP_ABORTED", "INSUFFICIENT_CREDITS"]
    assert (await ledger.service.Debit(a_debit(tenant, 20))).balance.available == 0
