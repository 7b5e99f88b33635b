"""SubscriptionsAdminService: what tenants were told."""

import json

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import notices
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.notices import Notice


class Notices(Desk):
    """Notices owed and sent."""

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await notices.list_notices(
            self._room.engine,
            tenant_id=request.tenant_id or None,
            kind=request.kind or None,
            before=messages.place(request.page_token),
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListNotificationsResponse(
            notifications=[_notice(each) for each in shown],
            next_page_token=messages.token_of(shown[-1].created_at, shown[-1].id)
            if len(found) > size
            else "",
        )


def _notice(of: Notice) -> pb.Notification:
    return pb.Notification(
        notification_id=of.id,
        tenant_id=of.tenant_id,
        kind=of.kind,
        cycle_ref=of.cycle_ref,
        sent_at=messages.timestamp(of.sent_at),
        payload_json=json.dumps(of.payload, sort_keys=True),
        created_at=messages.timestamp(of.created_at),
        skipped_at=messages.timestamp(of.skipped_at),
        attempts=of.attempts,
        next_attempt_at=(
            messages.timestamp(of.next_attempt_at) if of.sent_at is None and of.skipped_at is None else None
        ),
    )
