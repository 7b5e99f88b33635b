"""SubscriptionsAdminService: what tenants were told."""

import json
from datetime import datetime

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import notices
from services.subscriptions.errors import PageTokenInvalid
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.notices import Notice
from shared import paging
from shared.errors import InvalidArgument


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
            before=_before(request.page_token),
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListNotificationsResponse(
            notifications=[_notice(each) for each in shown],
            next_page_token=_token(shown[-1]) if len(found) > size else "",
        )


def _token(last: Notice) -> str:
    return paging.token(f"{last.created_at.isoformat()} {last.id}")


def _before(page_token: str) -> tuple[datetime, str] | None:
    """Where the page before ended; what is written meanwhile is newer and moves nothing."""
    try:
        position = paging.position(page_token)
        if position is None:
            return None
        created_at, notice_id = position.split(" ")
        moment = datetime.fromisoformat(created_at)
        if moment.tzinfo is None:
            raise ValueError("a moment without a zone")
    except (InvalidArgument, ValueError) as error:
        raise PageTokenInvalid(
            "this page token is not one of ours",
            violations=[("page_token", "pass next_page_token of the answer before, unchanged")],
        ) from error
    return moment, notice_id


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
