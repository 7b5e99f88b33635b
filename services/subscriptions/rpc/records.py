"""SubscriptionsAdminService: the audit log."""

import json
from typing import Any

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import records
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.records import Record


class Records(Desk):
    """ListAuditLog."""

    async def ListAuditLog(
        self, request: pb.ListAuditLogRequest, context: Context
    ) -> pb.ListAuditLogResponse:
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await records.list_records(
            self._room.engine,
            tenant_id=request.tenant_id or None,
            action=request.action or None,
            room=request.room or None,
            before=messages.place(request.page_token),
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListAuditLogResponse(
            entries=[_entry(each) for each in shown],
            next_page_token=messages.token_of(shown[-1].created_at, shown[-1].id)
            if len(found) > size
            else "",
        )


def _entry(of: Record) -> pb.AuditEntry:
    return pb.AuditEntry(
        audit_id=of.id,
        action=of.action,
        actor_type=of.actor_type,
        actor_id=of.actor_id,
        tenant_id=of.tenant_id or "",
        resource_type=of.resource_type,
        resource_id=of.resource_id,
        before_json=_json(of.before),
        after_json=_json(of.after),
        reason=of.reason,
        created_at=messages.timestamp(of.created_at),
        room=of.room,
        request_id=of.request_id or "",
    )


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, sort_keys=True)
