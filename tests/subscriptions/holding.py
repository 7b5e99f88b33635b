"""Somebody who changes a tenant and does not come to an end."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.subscriptions.conftest import Room


@contextmanager
def held(room: Room, tenant: str) -> Iterator[None]:
    """Until the block ends nobody else can change the tenant: who waits gives up after five seconds."""
    with psycopg.connect(room.admin_url) as db:
        db.execute("SELECT 1 FROM subscriptions.subscriptions WHERE tenant_id = %s FOR UPDATE", (tenant,))
        yield
