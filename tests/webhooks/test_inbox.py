"""The write path by itself: whatever happens to one group, the next finds a writer."""

import asyncio
import hashlib
from typing import Any

import psycopg
from sqlalchemy import event as events

from services.webhooks.errors import NotStored
from services.webhooks.inbox import Inbox
from services.webhooks.rules.inbox import NewEvent
from shared.clock import now
from shared.database import create_engine
from shared.ids import new_id
from tests.conftest import Database

MORE_THAN_TWO_GROUPS = 300


def delivery(number: int) -> NewEvent:
    body = b'{"number":%d}' % number
    return NewEvent(
        id=new_id("evt"),
        provider="razorpay",
        account_id="default",
        mode="test",
        event_id=None,
        event_type="payment.captured",
        tenant_id=None,
        aggregate_id=None,
        body=body,
        body_sha256=hashlib.sha256(body).hexdigest(),
        masked=False,
        signed_with="current",
        request_id="req",
        received_at=now(),
    )


async def test_a_fault_of_ours_in_one_group_leaves_no_other_without_a_writer(
    database: Database, db: psycopg.AsyncConnection
) -> None:
    engine = create_engine(database.url("webhooks_rw"), application_name="test", pool_size=4)
    faults = 2  # one for each writer

    def fail(*_: Any) -> None:
        nonlocal faults
        if faults:
            faults -= 1
            raise RuntimeError("a fault of ours")

    events.listen(engine.sync_engine, "checkout", fail)
    inbox = Inbox(engine, on_stored=lambda: None)
    answers = await asyncio.gather(
        *(inbox.put(delivery(number)) for number in range(MORE_THAN_TWO_GROUPS)), return_exceptions=True
    )
    await inbox.close()
    await engine.dispose()

    refused = [answer for answer in answers if isinstance(answer, NotStored)]
    stored = [answer for answer in answers if answer is True]
    assert len(refused) + len(stored) == MORE_THAN_TWO_GROUPS
    assert 0 < len(refused) < MORE_THAN_TWO_GROUPS
    assert {str(answer) for answer in refused} == {"the delivery could not be stored"}
    cursor = await db.execute("SELECT count(*) FROM webhook_events")
    assert await cursor.fetchone() == (len(stored),)


async def test_odd_texts_are_stored_as_they_are(database: Database, db: psycopg.AsyncConnection) -> None:
    engine = create_engine(database.url("webhooks_rw"), application_name="test", pool_size=4)
    odd = [
        '"',
        "\\",
        '\\"',
        "{}",
        "{a,b}",
        "NULL",
        "null",
        "",
        " ",
        ",",
        "'",
        "''",
        "a\nb\tc\r",
        "₹ é 你 🙂",
        "\x7f\x01",
        "%s",
    ]
    inbox = Inbox(engine, on_stored=lambda: None)
    texts = [*odd, *(first + second for first in odd for second in odd)]
    given = []
    for number, text in enumerate(texts):
        plain = delivery(number)
        given.append(
            NewEvent(**{**vars(plain), "event_id": text, "event_type": None if number % 2 else text})
        )
    assert all(await asyncio.gather(*(inbox.put(each) for each in given)))
    await inbox.close()
    await engine.dispose()

    cursor = await db.execute("SELECT id, event_id, event_type, body FROM webhook_events")
    kept = {row[0]: row[1:] for row in await cursor.fetchall()}
    assert kept == {each.id: (each.event_id, each.event_type, each.body) for each in given}
