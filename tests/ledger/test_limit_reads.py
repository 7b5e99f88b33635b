"""CheckLimit's readings: fresh when asked to be, never older than they say, and none the worse for what happens around."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from billing.ledger.v1 import ledger_pb2 as pb

from services.ledger import limit_reads
from services.ledger.limit_reads import LimitReads
from services.ledger.store.limits import STATES, values_of
from shared import clock, errors
from tests.conftest import Database
from tests.ledger.conftest import RunningLedger
from tests.ledger.test_entitlements import entitlements
from tests.ledger.test_plans import pages

LONG_MS = 60_000


def question(
    tenant: str, staleness_ms: int = 0, *, key: str = "blog.posts", requested: int = 1
) -> pb.CheckLimitRequest:
    return pb.CheckLimitRequest(
        tenant_id=tenant, limit_key=key, requested=requested, max_staleness_ms=staleness_ms
    )


def moment(answer: pb.CheckLimitResponse) -> datetime:
    return answer.as_of.ToDatetime(tzinfo=UTC)


async def write(database: Database, statement: str, *values: object) -> None:
    """As the ledger's own role, behind its back."""
    async with await psycopg.AsyncConnection.connect(database.url("ledger_rw"), autocommit=True) as db:
        await db.execute(statement, values)


async def test_a_stale_answer_says_its_age_and_a_fresh_one_sees_the_change_at_once(
    ledger: RunningLedger, tenant: str
) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1, posts=10))
    first = await ledger.service.CheckLimit(question(tenant, LONG_MS))
    await ledger.funding.SetEntitlements(entitlements(tenant, 2, posts=20))

    stale = await ledger.service.CheckLimit(question(tenant, LONG_MS))
    fresh = await ledger.service.CheckLimit(question(tenant))
    after = await ledger.service.CheckLimit(question(tenant, LONG_MS))

    assert stale == first
    assert (fresh.entitlements_version, fresh.decision.limit) == (2, 20)
    assert moment(fresh) > moment(stale)
    assert after == fresh  # nobody is led back behind what this process has told


async def test_an_answer_is_never_older_than_allowed(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))
    first = await ledger.service.CheckLimit(question(tenant, 20))
    await asyncio.sleep(0.03)

    later = await ledger.service.CheckLimit(question(tenant, 20))

    assert moment(later) - moment(first) >= timedelta(milliseconds=20)


async def test_no_answer_is_older_than_it_says(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    """Whatever was committed before `as_of` is in the answer; and `as_of` is as recent as the caller asked."""
    await ledger.funding.SetEntitlements(entitlements(tenant, 1, posts=None))
    await write(database, "INSERT INTO tenant_usage VALUES (%s, 'blog.posts', 0, now(), now())", tenant)
    acknowledged: list[tuple[datetime, int]] = [(datetime.now(UTC), 0)]
    answers: list[tuple[datetime, int, pb.CheckLimitResponse]] = []
    done = asyncio.Event()

    async def writer() -> None:
        async with await psycopg.AsyncConnection.connect(database.url("ledger_rw"), autocommit=True) as db:
            for used in range(1, 201):
                await db.execute("UPDATE tenant_usage SET used = %s WHERE tenant_id = %s", (used, tenant))
                acknowledged.append((datetime.now(UTC), used))
        done.set()

    async def reader(staleness_ms: int) -> None:
        while not done.is_set():
            asked_at = datetime.now(UTC)
            answers.append(
                (asked_at, staleness_ms, await ledger.service.CheckLimit(question(tenant, staleness_ms)))
            )

    await asyncio.gather(writer(), *(reader(staleness) for staleness in [0, 0, 0, 5, 50, 1000]))

    assert len({answer.decision.used for _, _, answer in answers}) > 1
    for asked_at, staleness_ms, answer in answers:
        as_of = moment(answer)
        assert asked_at - as_of <= timedelta(milliseconds=staleness_ms)
        assert answer.decision.used >= max(used for at, used in acknowledged if at <= as_of)


async def test_many_callers_each_get_their_own_answer(ledger: RunningLedger, tenant: str) -> None:
    tenants = [f"{tenant}_{number}" for number in range(8)]
    for number, each in enumerate(tenants):
        await ledger.funding.SetEntitlements(entitlements(each, number + 1, posts=number))

    async def ask(number: int) -> pb.CheckLimitResponse:
        staleness_ms = LONG_MS if number % 3 == 0 else 0
        return await ledger.service.CheckLimit(question(tenants[number % 8], staleness_ms))

    answers = await asyncio.gather(*(ask(number) for number in range(256)))

    for number, answer in enumerate(answers):
        assert (answer.decision.limit, answer.entitlements_version) == (number % 8, number % 8 + 1)
        assert answer.decision.allowed == (number % 8 > 0)


async def test_more_questions_than_a_query_takes_are_answered_in_turn(
    ledger: RunningLedger, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_reads, "BATCH_MAX", 2)
    tenants = [f"{tenant}_{number}" for number in range(7)]
    for each in tenants:
        await ledger.funding.SetEntitlements(entitlements(each, 1))

    readings = await asyncio.gather(*(ledger.ledger.limit_reads.find(each, "blog.posts") for each in tenants))

    moments = [each.as_of for each in readings if each is not None]
    assert moments == sorted(moments)
    assert [moments.count(each) for each in sorted(set(moments))] == [2, 2, 2, 1]


async def test_callers_that_leave_harm_nobody(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))

    calls = [asyncio.create_task(one(ledger, tenant)) for _ in range(64)]
    await asyncio.sleep(0.005)
    for call in calls[::2]:
        call.cancel()
    stayed = await asyncio.gather(*calls[1::2])

    assert all(answer.decision.allowed for answer in stayed)
    assert (await one(ledger, tenant)).decision.limit == 10


async def one(ledger: RunningLedger, tenant: str) -> pb.CheckLimitResponse:
    return await ledger.service.CheckLimit(question(tenant))


async def test_a_killed_connection_is_nobodys_loss(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))
    killed = 0
    done = asyncio.Event()

    async def kill() -> None:
        nonlocal killed
        async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as db:
            while not done.is_set():
                found = await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'ledger-limit-reads' AND datname = current_database()"
                )
                killed += len(await found.fetchall())
                await asyncio.sleep(0.02)

    async def ask() -> None:
        for _ in range(12):
            assert (await one(ledger, tenant)).decision.allowed

    killer = asyncio.create_task(kill())
    await asyncio.gather(*(ask() for _ in range(64)))
    done.set()
    await killer
    assert killed > 0


async def test_a_limit_that_cannot_be_read_fails_alone(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    broken, whole = f"{tenant}_broken", f"{tenant}_whole"
    for each in (broken, whole):
        await ledger.funding.SetEntitlements(entitlements(each, 1))
    edited = json.dumps({"posts": 5})
    await write(database, "UPDATE tenant_services SET limits = %s WHERE tenant_id = %s", edited, broken)
    await one(ledger, whole)
    before = await readers(database)

    results = await asyncio.gather(
        *(one(ledger, each) for each in [broken, whole] * 8), return_exceptions=True
    )

    assert all(isinstance(each, errors.Internal) for each in results[::2])
    assert all(isinstance(each, pb.CheckLimitResponse) for each in results[1::2])
    assert set(await readers(database)) <= set(before)  # such a limit costs nobody the connection


async def test_a_question_that_cannot_be_sent_fails_alone(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))

    async with LimitReads(database.url("ledger_rw")) as reads:
        results = await asyncio.gather(
            *(reads.find(each, "blog.posts") for each in [tenant, "no\0text", f"{tenant}_nobody"]),
            return_exceptions=True,
        )

    assert isinstance(results[0], limit_reads.Reading)
    assert isinstance(results[1], psycopg.DataError)
    assert results[2] is None


async def readers(database: Database) -> list[tuple[object, ...]]:
    """The connections that limits are read over."""
    async with await psycopg.AsyncConnection.connect(database.admin_url) as db:
        found = await db.execute(
            "SELECT pid, backend_start FROM pg_stat_activity"
            " WHERE application_name = 'ledger-limit-reads' AND datname = current_database()"
        )
        return await found.fetchall()


async def test_what_is_not_there_is_not_remembered(ledger: RunningLedger, tenant: str) -> None:
    with pytest.raises(errors.NotFound) as nobody:
        await ledger.service.CheckLimit(question(tenant, LONG_MS))
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))
    with pytest.raises(errors.NotFound) as no_limit:
        await ledger.service.CheckLimit(question(tenant, LONG_MS, key="blog.drafts"))
    other = entitlements(tenant, 2)
    other.services[0].limits[0].key = "drafts"
    await ledger.funding.SetEntitlements(other)

    answer = await ledger.service.CheckLimit(question(tenant, LONG_MS, key="blog.drafts"))

    assert (nobody.value.reason, no_limit.value.reason) == ("UNKNOWN_TENANT", "UNKNOWN_LIMIT")
    assert answer.decision.limit == 10


async def test_what_was_taken_away_is_not_remembered_either(ledger: RunningLedger, tenant: str) -> None:
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))
    await ledger.service.CheckLimit(question(tenant, LONG_MS))
    other = entitlements(tenant, 2)
    other.services[0].limits[0].key = "drafts"
    await ledger.funding.SetEntitlements(other)

    kept = await ledger.service.CheckLimit(question(tenant, LONG_MS))
    for staleness_ms in (0, LONG_MS):
        with pytest.raises(errors.NotFound):
            await ledger.service.CheckLimit(question(tenant, staleness_ms))

    assert kept.entitlements_version == 1


async def test_what_is_kept_is_bounded_and_goes_oldest_use_first(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    tenants = [f"{tenant}_{number}" for number in range(3)]
    for each in tenants:
        await ledger.funding.SetEntitlements(entitlements(each, 1))

    async with LimitReads(database.url("ledger_rw"), kept_max=2) as reads:

        async def as_of(tenant_id: str) -> datetime:
            found = await reads.find(tenant_id, "blog.posts", max_staleness_ms=LONG_MS)
            assert found is not None
            return found.as_of

        first, second = await as_of(tenants[0]), await as_of(tenants[1])
        assert await as_of(tenants[0]) == first
        third = await as_of(tenants[2])  # takes the place of the second, which was not asked for since

        assert (await as_of(tenants[0]), await as_of(tenants[2])) == (first, third)
        assert await as_of(tenants[1]) > second


async def test_a_moved_test_clock_makes_every_kept_answer_old(
    ledger: RunningLedger,
    database: Database,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = entitlements(tenant, 1, posts=0)
    request.services[0].limits[0].grace_seconds = 86_400
    await ledger.funding.SetEntitlements(request)
    await write(
        database,
        "INSERT INTO grace_periods VALUES (%s, 'blog.posts', now() + interval '1 day', now())",
        tenant,
    )
    clock_file = tmp_path / "clock"
    clock.move_to(clock_file, timedelta())
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(clock_file))

    before = await ledger.service.CheckLimit(question(tenant, LONG_MS))
    clock.move_to(clock_file, timedelta(days=2))
    after = await ledger.service.CheckLimit(question(tenant, LONG_MS))

    assert before.decision.reason == pb.LIMIT_REASON_GRACE_PERIOD
    assert before.decision.HasField("grace_expires_at")
    assert after.decision.reason == pb.LIMIT_REASON_PLAN_LIMIT_REACHED
    assert not after.decision.HasField("grace_expires_at")
    assert moment(after) - moment(before) >= timedelta(days=2)


async def test_a_grace_period_that_nothing_began_allows_without_an_end(
    ledger: RunningLedger, database: Database, tenant: str
) -> None:
    request = entitlements(tenant, 1, posts=3)
    request.services[0].limits[0].grace_seconds = 60
    await ledger.funding.SetEntitlements(request)

    decision = (await ledger.service.CheckLimit(question(tenant, requested=4))).decision

    assert (decision.allowed, decision.reason) == (True, pb.LIMIT_REASON_GRACE_PERIOD)
    assert not decision.HasField("grace_expires_at")
    async with await psycopg.AsyncConnection.connect(database.url("ledger_rw")) as db:
        for table in ("grace_periods", "tenant_usage"):  # asking counts nothing and begins nothing
            found = await db.execute(f"SELECT count(*) FROM {table} WHERE tenant_id = %s", (tenant,))
            assert await found.fetchone() == (0,)


def test_what_is_read_does_not_grow_with_the_number_of_tenants(database: Database) -> None:
    """Under a generic plan, which does not know how many are asked for: a few pages for each."""
    asked = [(f"many-{number}", "blog.posts") for number in range(20)]
    with psycopg.connect(database.admin_url, prepare_threshold=None) as db:
        db.execute("SET LOCAL search_path = ledger")
        db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        for statement in MANY_TENANTS:
            db.execute(statement)
        touched = pages(db, numbered(STATES), TYPES, values_of(asked, timedelta()))
        db.rollback()

    assert touched <= 20 * 4 * 4


MANY_TENANTS = (
    "INSERT INTO tenant_credits (tenant_id, id, last_at, chain_head, created_at)"
    " SELECT 'many-' || n, 'a', now(), '', now() FROM generate_series(1, 5000) n",
    "INSERT INTO tenant_services SELECT 'many-' || n, s, 's', true, '{}', now(), now()"
    " FROM generate_series(1, 5000) n, unnest(ARRAY['blog', 'media', 'mail']) s",
    "INSERT INTO tenant_usage SELECT 'many-' || n, k, 1, now(), now()"
    " FROM generate_series(1, 5000) n, unnest(ARRAY['blog.posts', 'blog.drafts', 'media.files']) k",
    "INSERT INTO grace_periods SELECT 'many-' || n, 'blog.posts', now(), now() FROM generate_series(1, 5000) n",
    "ANALYZE tenant_credits, tenant_services, tenant_usage, grace_periods",
)
TYPES = ", ".join(["float8", *["text[]"] * 8])


def numbered(statement: str) -> str:
    """The statement with the parameters of a PREPARE."""
    counter = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(counter)}", statement)


async def test_a_database_that_stays_away_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_reads, "PATIENCE_SECONDS", 0.3)
    nobody_there = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = nobody_there.sockets[0].getsockname()[1]
    nobody_there.close()
    await nobody_there.wait_closed()

    async with LimitReads(f"postgresql://nobody@127.0.0.1:{port}/nothing") as reads:
        asked = [asyncio.create_task(reads.find("tenant", "blog.posts")) for _ in range(8)]
        async with asyncio.timeout(10):
            results = await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(each, errors.Unavailable) for each in results)


async def test_whoever_waits_when_the_ledger_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Silence() as silent:
        async with LimitReads(f"postgresql://nobody@127.0.0.1:{silent.port}/nothing") as reads:
            asked = asyncio.create_task(reads.find("tenant", "blog.posts"))
            await silent.met()
        with pytest.raises(errors.Unavailable):
            await asked


async def test_a_link_that_never_answers_is_given_up(
    ledger: RunningLedger, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_reads, "ROUND_TRIP_SECONDS", 0.3)
    await ledger.funding.SetEntitlements(entitlements(tenant, 1))

    async with relay(database.url("ledger_rw")) as (url, links), LimitReads(url) as reads:
        assert await reads.find(tenant, "blog.posts") is not None
        for link in links:
            link.silent = True
        async with asyncio.timeout(5):
            found = await reads.find(tenant, "blog.posts")

    assert found is not None
    assert len(links) == 2


class Silence:
    """A listener that takes connections and never says a word."""

    async def __aenter__(self) -> Silence:
        self._met = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _meet(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._met.set()

    async def met(self) -> None:
        await asyncio.wait_for(self._met.wait(), 5)

    async def __aexit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        self._server.close()
        await self._server.wait_closed()


class Link:
    """One relayed connection; a silent one swallows what either side says."""

    silent = False

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                if not self.silent:
                    writer.write(data)
        finally:
            writer.close()


@asynccontextmanager
async def relay(url: str) -> AsyncIterator[tuple[str, list[Link]]]:
    """The same database behind a relay: (its URL, the connections made so far)."""
    address = urlsplit(url)
    links: list[Link] = []
    pumps: list[asyncio.Task[None]] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(link := Link())
        from_there, to_there = await asyncio.open_connection(address.hostname, address.port)
        pumps.append(asyncio.create_task(link.pump(reader, to_there)))
        pumps.append(asyncio.create_task(link.pump(from_there, writer)))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = f"{address.username}:{address.password}@127.0.0.1:{port}"
    try:
        yield urlunsplit(address._replace(netloc=there)), links
    finally:
        server.close()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await server.wait_closed()
