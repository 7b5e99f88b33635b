"""The tool itself: what it cuts before COMMIT never happened, what it cuts after it has."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.conftest import Database
from tests.faults.proxy import Cut, Frontend, Proxy, proxied

TIMES = 12  # psycopg prepares a statement that it has seen five times


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[Proxy]:
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("CREATE TABLE public.cut (n int)")
    async with proxied(database.admin_url) as proxy:
        yield proxy
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("DROP TABLE public.cut")


async def numbers(database: Database) -> list[int]:
    async with await psycopg.AsyncConnection.connect(database.admin_url) as db:
        cursor = await db.execute("SELECT n FROM public.cut ORDER BY n")
        return [row[0] for row in await cursor.fetchall()]


async def insert_in_a_pipeline(db: psycopg.AsyncConnection, n: int) -> None:
    async with db.pipeline() as pipeline:
        await db.execute("BEGIN")
        await db.execute("INSERT INTO public.cut VALUES (%s)", [n])
        await db.execute("COMMIT")
        await pipeline.sync()


async def insert_prepared(db: psycopg.AsyncConnection, n: int) -> None:
    await db.execute("BEGIN", prepare=True)
    await db.execute("INSERT INTO public.cut VALUES (%s)", [n], prepare=True)
    await db.execute("COMMIT", prepare=True)


async def insert_in_one_query(db: psycopg.AsyncConnection, n: int) -> None:
    await db.execute(f"BEGIN; INSERT INTO public.cut VALUES ({n}); COMMIT")


@pytest.mark.parametrize("insert", [insert_in_a_pipeline, insert_prepared, insert_in_one_query])
@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
async def test_a_cut_before_undoes_and_a_cut_after_does_not_and_the_client_cannot_tell(
    proxy: Proxy, database: Database, cut: Cut, insert: object
) -> None:
    connections = [await psycopg.AsyncConnection.connect(proxy.url, autocommit=True) for _ in range(2)]
    for n in range(TIMES):
        await insert(connections[0], n)  # type: ignore[operator]
    assert proxy.commits == TIMES

    proxy.plan = lambda: cut
    for db in connections:
        with pytest.raises(psycopg.OperationalError):
            await insert(db, 100)  # type: ignore[operator]
        await db.close()

    assert proxy.cuts == {cut: 2}
    kept = [100, 100] if cut is Cut.AFTER else []
    assert await numbers(database) == [*range(TIMES), *kept]


@pytest.mark.parametrize("cut", [Cut.HOLE_BEFORE, Cut.HOLE_AFTER])
async def test_a_hole_answers_nothing_and_keeps_the_socket(
    proxy: Proxy, database: Database, cut: Cut
) -> None:
    proxy.plan = lambda: cut
    db = await psycopg.AsyncConnection.connect(proxy.url, autocommit=True)

    waiting = asyncio.create_task(insert_in_a_pipeline(db, 1))
    done, _ = await asyncio.wait([waiting], timeout=0.3)

    assert not done
    assert await numbers(database) == ([1] if cut is Cut.HOLE_AFTER else [])
    waiting.cancel()
    await proxy.close()
    await asyncio.wait([waiting])
    await db.close()


def test_messages_are_recognised_however_they_are_torn() -> None:
    startup = (8).to_bytes(4, "big") + b"\0\3\0\0"
    ask_ssl = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")

    def typed(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    script = b"".join(
        [
            *(ask_ssl, startup),
            *(typed(b"P", b"s1\0COMMIT\0\0\0"), typed(b"P", b"\0SELECT 'COMMIT'\0\0\0")),
            *(typed(b"B", b"\0\0\0\0\0\0\0\0"), typed(b"E", b"\0\0\0\0\0")),
            *(typed(b"B", b"\0s1\0\0\0\0\0\0\0"), typed(b"E", b"\0\0\0\0\0")),
            *(typed(b"Q", b"commit ;\0"), typed(b"S", b"")),
        ]
    )
    for step in (1, 3, 7, len(script)):
        frontend = Frontend()
        found = [
            each
            for start in range(0, len(script), step)
            for each in frontend.feed(script[start : start + step])
        ]
        assert [commits for _, commits in found] == [
            *(False, False, False, False, False),
            *(False, False, True, True, False),
        ]
