"""Traces of a whole suite: real rooms, a real payment, a collector that takes what they send."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from billing.scheduler.v1 import scheduler_pb2 as pb
from billing.scheduler.v1 import scheduler_pb2_grpc as pb_grpc

from tests.journeys.test_hostile_deliveries import paid, post
from tests.journeys.test_kill import clients_of
from tests.shared.collector import Collector, Span, collecting
from tests.suite.running import RunningSuite

APPLY = "billing.subscriptions.v1.PaymentEventsService/ApplyPaymentEvent"


TENANT = "traced_tenant"


@pytest.fixture(scope="module")
def tracing() -> Iterator[tuple[RunningSuite, Collector]]:
    """A suite that traces, and who is told."""
    with tempfile.TemporaryDirectory(prefix="billing-traced-") as folder, collecting() as collector:
        Path(folder).chmod(0o711)
        suite = RunningSuite(
            Path(folder), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="200"
        )
        try:
            suite.start()
            yield suite, collector
        finally:
            suite.stop()


@pytest.fixture(scope="module")
async def traced(tracing: tuple[RunningSuite, Collector]) -> tuple[RunningSuite, Collector]:
    """The same, after a customer paid and the provider told of it."""
    suite = tracing[0]
    async with clients_of(suite) as clients:
        for body in await paid(clients, TENANT):
            await post(suite, clients.ingress, body)
    return tracing


def below(spans: list[Span], span: Span) -> list[Span]:
    children = [child for child in spans if child.parent_id == span.id]
    return [span, *(each for child in children for each in below(spans, child))]


def test_a_payment_is_followed_from_its_delivery_to_the_ledger(
    traced: tuple[RunningSuite, Collector],
) -> None:
    def whole(spans: list[Span]) -> list[Span]:
        for root in spans:
            if root.name == "webhook delivery":
                path = below(spans, root)
                if {span.service for span in path} >= {"billing-subscriptions", "billing-ledger"}:
                    return path
        return []

    path: list[Span] = traced[1].until(whole)

    root = path[0]
    assert (root.service, root.parent_id) == ("billing-webhooks", "")
    assert {span.trace_id for span in path} == {root.trace_id}
    assert {span.attributes["billing.request_id"] for span in path} == {root.attributes["billing.request_id"]}
    served = [(span.service, span.name) for span in path if span.kind == "server"]
    assert ("billing-subscriptions", APPLY) in served
    assert [name for service, name in served if service == "billing-ledger"]
    assert {span.attributes["rpc.response.status_code"] for span in path[1:]} == {"OK"}


async def test_a_job_is_followed_from_the_scheduler_to_its_rooms(
    traced: tuple[RunningSuite, Collector],
) -> None:
    suite, collector = traced
    metadata = [("x-gateway-key", suite.runtime["secrets"]["operator_secret"])]
    async with grpc.aio.insecure_channel(suite.runtime["addresses"]["scheduler"]) as channel:
        stub = pb_grpc.SchedulerServiceStub(channel)
        await stub.RunJob(
            pb.RunJobRequest(idempotency_key="traced", job="cleanup", dry_run=True), metadata=metadata
        )

    def rooms(spans: list[Span]) -> set[str]:
        asked = {span.id: span.trace_id for span in spans if span.service == "billing-scheduler"}
        return {
            span.service
            for span in spans
            if span.name.endswith("MaintenanceService/Cleanup")
            and span.kind == "server"
            and asked.get(span.parent_id) == span.trace_id
        }

    everybody = {"billing-ledger", "billing-subscriptions", "billing-webhooks"}
    assert collector.until(lambda spans: rooms(spans) == everybody)


def test_nothing_that_anybody_said_is_in_a_span(traced: tuple[RunningSuite, Collector]) -> None:
    suite, collector = traced
    sent = b"".join(collector.bodies)

    assert len(collector.spans) > 20
    assert TENANT.encode() not in sent, "a tenant is named"
    for secret in suite.runtime["secrets"].values():
        assert secret.encode() not in sent
    names = {name for span in collector.spans for name in span.attributes}
    assert names == {
        *("rpc.system", "rpc.service", "rpc.method", "rpc.response.status_code"),
        *("billing.request_id", "billing.provider", "billing.attempt"),
    }
    assert {span.events for span in collector.spans} == {0}
