"""Claiming deliveries, and writing down what came of an attempt."""

from datetime import datetime, timedelta

from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.webhooks.rules.delivery import Claimed, Decision, SetAside, TryAgain
from services.webhooks.tables import MOMENT
from shared.ids import new_id

# An event waits for an earlier one of its aggregate only while that one has never failed: its first attempt is
# due or running. A lease that ran out is a failure, so a body that kills its worker ends as a dead letter too; of those
# whose worker died only one is claimed at a time, so that it does not take along, time and again, what it died with.
_CLAIM = text("""
    WITH due AS (
        SELECT event.id, event.next_retry_at, event.locked_until IS NOT NULL AS suspect
        FROM webhook_events AS event
        WHERE NOT event.processed
          AND event.next_retry_at <= clock_timestamp()
          AND (event.locked_until IS NULL OR event.locked_until < clock_timestamp())
          AND (event.aggregate_id IS NULL OR event.retry_count > 0 OR NOT EXISTS (
              SELECT 1 FROM webhook_events AS earlier
              WHERE earlier.aggregate_id = event.aggregate_id AND NOT earlier.processed
                AND earlier.retry_count = 0
                AND (earlier.received_at, earlier.id) < (event.received_at, event.id)))
        ORDER BY event.next_retry_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), chosen AS (
        SELECT id, NOT suspect OR row_number() OVER (PARTITION BY suspect ORDER BY next_retry_at, id) = 1 AS goes
        FROM due
    )
    UPDATE webhook_events AS event
    SET locked_until = clock_timestamp() + make_interval(secs => :lease_seconds),
        attempt = attempt + 1,
        retry_count = retry_count + CASE WHEN locked_until IS NULL THEN 0 ELSE 1 END,
        last_error = CASE WHEN locked_until IS NULL THEN last_error ELSE 'worker_died' END
    FROM chosen WHERE chosen.goes AND event.id = chosen.id
    RETURNING event.id, attempt, provider, account_id, mode, event_id, event_type, tenant_id, body, body_sha256,
        body_removed_at, request_id, received_at, retry_count
""")

_STILL_MINE = "WHERE id = :id AND attempt = :attempt AND NOT processed"
_FINISH = text(f"""
    UPDATE webhook_events SET processed = true, processed_at = :now, outcome = :outcome,
        outcome_reason = :reason, tenant_id = COALESCE(:tenant_id, tenant_id), next_retry_at = NULL,
        locked_until = NULL, last_error = NULL {_STILL_MINE}
""").bindparams(bindparam("now", type_=MOMENT))
# Skips what another worker is writing, so that two that name each other's events never wait for one another.
_NAME_TENANT = text("""
    UPDATE webhook_events SET tenant_id = :tenant_id WHERE id IN (
        SELECT id FROM webhook_events
        WHERE aggregate_id = :order_id AND tenant_id IS NULL
          AND provider = :provider AND account_id = :account_id AND mode = :mode
        FOR UPDATE SKIP LOCKED)
""")
_SET_ASIDE = text(f"""
    WITH dead AS (
        UPDATE webhook_events SET processed = true, processed_at = :now, outcome = 'dead',
            outcome_reason = :reason, retry_count = retry_count + :failed, next_retry_at = NULL,
            locked_until = NULL, last_error = :error {_STILL_MINE}
        RETURNING id, tenant_id, event_id, event_type, retry_count
    )
    INSERT INTO webhook_dead_letter_queue
        (id, webhook_event_id, tenant_id, event_id, event_type, reason, last_error, retry_count, created_at)
    SELECT :letter_id, id, tenant_id, event_id, event_type, :reason, :error, retry_count, :now FROM dead
""").bindparams(bindparam("now", type_=MOMENT))
_TRY_AGAIN = text(f"""
    UPDATE webhook_events SET retry_count = retry_count + 1, last_error = :error, locked_until = NULL,
        next_retry_at = clock_timestamp() + make_interval(secs => :after_seconds) {_STILL_MINE}
""")
_RELEASE = text(f"UPDATE webhook_events SET locked_until = NULL {_STILL_MINE}")
_PENDING = text("""
    SELECT count(*), count(*) FILTER (WHERE next_retry_at <= clock_timestamp()), min(received_at)
    FROM webhook_events WHERE NOT processed
""")


async def claim_events(db: AsyncConnection, *, limit: int, lease_seconds: float) -> list[Claimed]:
    """Takes due events for this worker alone until the lease ends, by the database's clock; oldest due first."""
    rows = await db.execute(_CLAIM, {"limit": limit, "lease_seconds": lease_seconds})
    claimed = [Claimed(**row._mapping) for row in rows]
    return sorted(claimed, key=lambda event: (event.received_at, event.id))


async def finish_event(db: AsyncConnection, event: Claimed, decision: Decision, now: datetime) -> bool:
    """Writes the outcome, unless the claim was lost to another worker."""
    values = {
        "id": event.id,
        "attempt": event.attempt,
        "now": now,
        "outcome": decision.outcome,
        "reason": decision.reason,
        "tenant_id": decision.tenant_id,
    }
    return (await db.execute(_FINISH, values)).rowcount == 1


async def name_tenant(db: AsyncConnection, event: Claimed, order_id: str, tenant_id: str) -> None:
    """Says whom earlier events of the same order concerned: they came before anything that could tell."""
    values = {
        "order_id": order_id,
        "tenant_id": tenant_id,
        "provider": event.provider,
        "account_id": event.account_id,
        "mode": event.mode,
    }
    await db.execute(_NAME_TENANT, values)


async def set_aside(
    db: AsyncConnection, event: Claimed, verdict: SetAside, now: datetime, *, failed: int = 1
) -> bool:
    """Makes the event a dead letter, unless the claim was lost to another worker."""
    values = {
        "id": event.id,
        "attempt": event.attempt,
        "now": now,
        "reason": verdict.reason,
        "error": verdict.error,
        "failed": failed,
        "letter_id": new_id("dead"),
    }
    return (await db.execute(_SET_ASIDE, values)).rowcount == 1


async def try_again(db: AsyncConnection, event: Claimed, verdict: TryAgain) -> bool:
    """Lets the event wait for its next attempt, unless the claim was lost to another worker."""
    values = {
        "id": event.id,
        "attempt": event.attempt,
        "error": verdict.error,
        "after_seconds": verdict.after / timedelta(seconds=1),
    }
    return (await db.execute(_TRY_AGAIN, values)).rowcount == 1


async def release_event(db: AsyncConnection, event: Claimed) -> None:
    """Gives a claim back unused, so that nobody waits for its lease."""
    await db.execute(_RELEASE, {"id": event.id, "attempt": event.attempt})


async def count_pending(db: AsyncConnection) -> tuple[int, int, datetime | None]:
    """How many events wait, how many of them are due, and when the oldest of them was received."""
    waiting, due, oldest = (await db.execute(_PENDING)).one()
    return waiting, due, oldest
