"""The suite under the year: its processes, its clock, its jobs, and everybody's way in."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
from billing.ledger.v1 import ledger_admin_pb2_grpc, ledger_pb2_grpc
from billing.scheduler.v1 import scheduler_pb2 as scheduler_pb
from billing.scheduler.v1 import scheduler_pb2_grpc
from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc, subscriptions_pb2_grpc
from google.protobuf.json_format import MessageToDict
from psycopg.rows import dict_row
from pydantic import SecretStr

from shared import clock
from shared.rpc.client import open_channel
from suite.postgres import ADMIN, EmbeddedPostgres
from tests.suite.running import RunningSuite
from tests.year.tally import Tally

DRAIN_SECONDS_MAX = 60
JOB_SECONDS_MAX = 300
JOB_ATTEMPTS = 6
LEASED = ("subscriptions.billing_reconciliation_queue", "subscriptions.checkout_intents")
PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PROVIDER_UNAVAILABLE")
# What waits in real time, so that a lost moment costs milliseconds: the clock of this year is another one.
SETTINGS = {
    "LOG_LEVEL": "warning",
    "SANDBOX_RETRY_SCALE": "0.01",
    "WEBHOOKS_DELIVERY_BACKOFF_SECONDS": "0.05",
    "WEBHOOKS_DELIVERY_POLL_SECONDS": "0.5",
    "REFLECTION": "false",
    # A year of jobs is run by hand within minutes.
    "ADMIN_CALLS_PER_15_MINUTES": "0",
}


@dataclass
class Place:
    """A running suite, and the doors that customers, browsers, banks, operators and time use."""

    suite: RunningSuite
    tally: Tally
    ledger: ledger_pb2_grpc.LedgerServiceStub
    ledger_admin: ledger_admin_pb2_grpc.LedgerAdminServiceStub
    product: subscriptions_pb2_grpc.SubscriptionsServiceStub
    admin: subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub
    scheduler: scheduler_pb2_grpc.SchedulerServiceStub
    sandbox: httpx.AsyncClient
    operator_url: str
    webhook_url: str
    reader: psycopg.AsyncConnection[dict[str, Any]]
    ahead: timedelta = timedelta()
    runs: int = 0
    failed_jobs: list[str] = field(default_factory=list)
    unserved_jobs: set[str] = field(default_factory=set)
    deaf: bool = False

    def now(self) -> datetime:
        """The present of the year."""
        return datetime.now().astimezone() + self.ahead

    def move(self, by: timedelta) -> None:
        """Lets time pass for every process at once."""
        self.ahead += by
        clock.move_to(self.suite.clock, self.ahead)

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """What the tables hold, as an operator reads them."""
        async with self.reader.cursor() as cursor:
            await cursor.execute(query, values)
            return await cursor.fetchall()

    def let_leases_lapse(self) -> None:
        """Leases go by the database's own clock, which nobody moves: a day that passes is told to those of the dead."""
        with psycopg.connect(self.suite.settings["DATABASE_URL"], autocommit=True) as db:
            for table in LEASED:
                db.execute(
                    f"UPDATE {table} SET locked_until = clock_timestamp() WHERE locked_until > clock_timestamp()"
                )

    async def control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Moves a switch of the sandbox itself."""
        answer = await self.sandbox.request(method, f"/_sandbox/{path}", json=body or {})
        answer.raise_for_status()
        return answer.json()

    async def act(self, path: str, **body: Any) -> list[dict[str, Any]] | None:
        """Something the customer or a bank does; None when the provider refuses it."""
        self.tally.acts[path.split("/", 2)[0] + "/" + path.rsplit("/", 1)[-1]] += 1
        answer = await self.sandbox.post(f"/_sandbox/{path}", json=body)
        if answer.status_code == 400:
            self.tally.refusals["provider", f"{path.rsplit('/', 1)[-1]}"] += 1
            return None
        answer.raise_for_status()
        return [each | {"body": json.loads(base64.b64decode(each["body_base64"]))} for each in answer.json()]

    async def tick(self, **manners: Any) -> int:
        """Lets the provider do what time made due; answers how many events that made."""
        return len(await self.control("POST", "tick", {"bodies": False, **manners}))

    async def replay(self, event_ids: Iterable[str]) -> None:
        """Deliveries that were held back arrive."""
        for event_id in event_ids:
            await self.control("POST", f"deliveries/{event_id}/replay")

    async def lose_webhooks(self, lost: bool) -> None:
        """From now on the provider's deliveries reach nobody, or reach us again."""
        await self.control("POST", "webhook_endpoint", {"url": None if lost else self.webhook_url})
        self.deaf = lost

    async def drain(self) -> None:
        """Returns when every delivery is acknowledged and every event that was taken in is applied."""
        began = time.monotonic()
        left = await self.control("POST", "drain", {"timeout": DRAIN_SECONDS_MAX - 5, "hurry": True})
        if not left["drained"] or (left["disabled"] and not self.deaf):
            raise TimeoutError(f"the provider cannot get rid of its deliveries: {left}")
        while (waiting := await self._inbox()) > 0:
            if time.monotonic() - began > DRAIN_SECONDS_MAX:
                raise TimeoutError(f"{waiting} events wait in the inbox and nobody takes them")
            await asyncio.sleep(0.01)
        self.tally.spent_seconds["drain"] += time.monotonic() - began

    async def _inbox(self) -> int:
        (found,) = await self.rows(
            "SELECT count(*) AS waiting FROM webhooks.webhook_events WHERE NOT processed"
        )
        return int(found["waiting"])

    async def run_job(self, job: str) -> dict[str, Any]:
        """Runs a job as an operator does and answers what the rooms said, by `<room>.<Method>`."""
        began, attempts = time.monotonic(), 0
        while True:
            self.runs += 1
            request = scheduler_pb.RunJobRequest(
                idempotency_key=f"year:{self.runs}:{job}", job=job, actor="year", reason="a day of the year"
            )
            answer = await self.tally.ask(
                lambda asked: self.scheduler.RunJob(asked, timeout=JOB_SECONDS_MAX), request, job
            )
            attempts += 1
            if answer is None:
                self.failed_jobs.append(f"{job} was refused on {self.now():%Y-%m-%d}")
                return {}
            summary: dict[str, Any] = MessageToDict(answer.run.summary)
            # A room that was killed, a provider that is away: the next tick of the schedule comes soon.
            if not _passing(answer.run.outcome, summary) or attempts == JOB_ATTEMPTS:
                break
            self.tally.repeats[f"job {job}"] += 1
            await asyncio.sleep(1)
        self.tally.spent_seconds[f"job {job}"] += time.monotonic() - began
        if answer.run.outcome == scheduler_pb.RUN_OUTCOME_UNIMPLEMENTED:
            self.unserved_jobs.add(job)
        elif answer.run.outcome != scheduler_pb.RUN_OUTCOME_SUCCEEDED:
            self.failed_jobs.append(f"{job} failed on {self.now():%Y-%m-%d}: {json.dumps(summary)[:400]}")
        return summary

    async def run_jobs(self, *jobs: str) -> dict[str, Any]:
        """Runs jobs beside each other, as the schedule does."""
        summaries: dict[str, Any] = {}
        for summary in await asyncio.gather(*(self.run_job(job) for job in jobs)):
            summaries |= summary
        return summaries

    async def stop_the_schedule(self) -> None:
        """From now on jobs run only when they are asked for: ticks of leaps would run beside them."""
        listed = await self.scheduler.ListJobs(scheduler_pb.ListJobsRequest())
        for job in listed.jobs:
            await self.scheduler.PauseJob(
                scheduler_pb.PauseJobRequest(
                    idempotency_key=f"year:pause:{job.name}", job=job.name, actor="year"
                )
            )


def _passing(outcome: int, summary: dict[str, Any]) -> bool:
    failed = [each for each in summary.values() if each.get("outcome") == "failed"]
    return outcome == scheduler_pb.RUN_OUTCOME_FAILED and all(
        each.get("reason") in PASSING for each in failed
    )


@contextmanager
def running_suite() -> Iterator[RunningSuite]:
    """A suite of its own with a database that trusts the machine not to fall over; its log stays if it fails."""
    folder = Path(tempfile.mkdtemp(prefix="billing-year-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder / "database", port=0, durable=False)
    try:
        server.start()
        server.create_database(ADMIN)
        suite = RunningSuite(folder, DATABASE_URL=server.url(), **SETTINGS)
        try:
            suite.start()
            yield suite
        finally:
            suite.stop()
    except BaseException:
        keep_log(folder / "suite.log")
        raise
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def keep_log(log: Path) -> None:
    """Saves what the suite said, before its folder goes."""
    if log.exists():
        kept = Path(tempfile.gettempdir()) / "billing-year.log"
        shutil.copyfile(log, kept)
        print(f"What the suite logged: {kept}")


@asynccontextmanager
async def place_in(suite: RunningSuite) -> AsyncIterator[Place]:
    """Everybody's clients for a running suite."""
    addresses, secrets = suite.runtime["addresses"], suite.runtime["secrets"]
    product, operator = SecretStr(secrets["gateway_secret"]), SecretStr(secrets["operator_secret"])
    channels: list[grpc.aio.Channel] = []

    def channel(room: str, key: SecretStr) -> grpc.aio.Channel:
        channels.append(open_channel(addresses[room], key))
        return channels[-1]

    operator_url = suite.runtime["database"]["urls"]["billing_operator"]
    async with (
        httpx.AsyncClient(
            base_url=suite.runtime["sandbox_url"],
            auth=(secrets["razorpay_key_id"], secrets["razorpay_key_secret"]),
            timeout=60,
            trust_env=False,
        ) as sandbox,
        await psycopg.AsyncConnection.connect(operator_url, autocommit=True, row_factory=dict_row) as reader,
    ):
        yield Place(
            suite=suite,
            tally=Tally(),
            ledger=ledger_pb2_grpc.LedgerServiceStub(channel("ledger", product)),
            ledger_admin=ledger_admin_pb2_grpc.LedgerAdminServiceStub(channel("ledger", operator)),
            product=subscriptions_pb2_grpc.SubscriptionsServiceStub(channel("subscriptions", product)),
            admin=subscriptions_admin_pb2_grpc.SubscriptionsAdminServiceStub(
                channel("subscriptions", operator)
            ),
            scheduler=scheduler_pb2_grpc.SchedulerServiceStub(channel("scheduler", operator)),
            sandbox=sandbox,
            operator_url=operator_url,
            webhook_url=f"{suite.runtime['webhooks_http_url']}/webhooks/razorpay",
            reader=reader,
        )
        for each in channels:
            await each.close()
