"""What Prometheus is told of the ingress: at both of its doors, and while the database is away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from billing.subscriptions.v1 import payment_events_pb2 as pb
from prometheus_client.parser import text_string_to_metric_families

from shared import metrics
from shared.errors import InvalidArgument, Unavailable
from tests.webhooks.conftest import Start
from tests.webhooks.harness import Running, charged, eventually

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Numbers:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(room: Running) -> Numbers:
    return read((await room.http.get(f"{room.url}/metrics")).text)


def statuses(numbers: Numbers) -> dict[str, float]:
    """How often an event of Razorpay came to each."""
    return {
        dict(labels)["status"]: value
        for (name, labels), value in numbers.items()
        if name == "provider_webhook_events_total" and ("provider", "razorpay") in labels
    }


@asynccontextmanager
async def second_door(room: Running) -> AsyncIterator[str]:
    """The door that every room has for Prometheus."""
    listener = metrics.bind("127.0.0.1:0", "WEBHOOKS_METRICS_LISTEN")
    serving = asyncio.create_task(metrics.serve_metrics(room.room.exposition, listener))
    try:
        yield "http://{}:{}/metrics".format(*listener.getsockname())
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def test_both_doors_tell_the_same(room: Running, tenant: str) -> None:
    await room.post(charged(tenant))
    await room.settled(1)

    async with second_door(room) as url:
        here, there = read((await room.http.get(url)).text), await scraped(room)

    ours = [key for key in here if key[0].startswith(("billing_webhook", "provider_", "webhook_"))]
    assert len(ours) > 20
    assert {key: here[key] for key in ours} == {key: there[key] for key in ours}
    assert here.keys() - there.keys() == set()


async def test_every_status_is_there_before_the_first_event(room: Running) -> None:
    before = statuses(await scraped(room))

    assert before == dict.fromkeys(("processed", "superseded", "ignored", "duplicate", "failed", "dead"), 0.0)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (pb.PAYMENT_EVENT_OUTCOME_APPLIED, "processed"),
        (pb.PAYMENT_EVENT_OUTCOME_SUPERSEDED, "superseded"),
        (pb.PAYMENT_EVENT_OUTCOME_IGNORED, "ignored"),
        (pb.PAYMENT_EVENT_OUTCOME_DUPLICATE, "duplicate"),
        (Unavailable("away"), "failed"),
        (InvalidArgument("no"), "dead"),
    ],
    ids=["applied", "superseded", "ignored", "duplicate", "failed", "dead"],
)
async def test_an_attempt_counts_as_what_became_of_its_event(
    start: Start, tenant: str, answer: Any, status: str
) -> None:
    room = await start()

    async def behave(_request: pb.ApplyPaymentEventRequest) -> pb.ApplyPaymentEventResponse:
        if isinstance(answer, Exception):
            raise answer
        return pb.ApplyPaymentEventResponse(outcome=answer, reason="said so")

    room.subscriptions.before = behave
    await room.post(charged(tenant))

    async def counted() -> bool:
        return statuses(await scraped(room))[status] > 0

    await eventually(counted)
    others = {name for name, value in statuses(await scraped(room)).items() if value} - {status}
    assert others == set()

    async def dead_letters() -> bool:
        numbers = await scraped(room)
        return numbers["webhook_dead_letter_queue_size", frozenset()] == (status == "dead")

    await eventually(dead_letters)


async def test_backlog_and_forged_deliveries_are_shown(start: Start, tenant: str) -> None:
    room = await start(deliver=False)
    assert (await scraped(room))[FORGED] == 0

    await room.post(charged(tenant))
    await room.post(charged(tenant), secret="not-the-secret-of-anybody")

    async def waiting() -> bool:
        numbers = await scraped(room)
        return numbers["billing_webhook_inbox_pending", frozenset()] == 1

    await eventually(waiting)
    numbers = await scraped(room)
    assert numbers["billing_webhook_inbox_due", frozenset()] == 1
    assert 0 < numbers["billing_webhook_inbox_lag_seconds", frozenset()] < 60
    assert numbers["webhook_dead_letter_queue_size", frozenset()] == 0
    assert numbers[FORGED] == 1


FORGED = (
    "billing_webhook_signature_failures_total",
    frozenset({("provider", "razorpay"), ("endpoint", "")}),
)


async def test_it_answers_while_the_database_is_away(start: Start) -> None:
    room = await start(deliver=False, webhooks_database_url="postgresql://webhooks_rw:x@127.0.0.1:1/none")
    failures = ("billing_metrics_refresh_failures_total", frozenset[tuple[str, str]]())
    before = metrics.REGISTRY.get_sample_value(failures[0]) or 0.0

    answer = await room.http.get(f"{room.url}/metrics")

    assert answer.status_code == 200
    assert read(answer.text)[failures] == before + 1
    assert read(answer.text)["webhook_dead_letter_queue_size", frozenset()] == 0
