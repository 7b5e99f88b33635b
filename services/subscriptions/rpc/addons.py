"""SubscriptionsService: add-ons, paid with credits."""

import re

from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.actions import addons
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.addons import Shown

_TOKEN = re.compile(r"tad_[0-9a-z]{26}")


class Addons(Desk):
    """Bought, ended, started again."""

    async def BuyAddon(self, request: pb.BuyAddonRequest, context: Context) -> pb.BuyAddonResponse:
        try:
            bought = await addons.buy_addon(
                self._room.engine,
                self._room.ledger,
                tenant_id=request.tenant_id,
                idempotency_key=request.idempotency_key,
                addon_code=request.addon_code,
                units=request.units or 1,
                clock=self._room.clock,
            )
        finally:
            await self._room.reconciler.attempt(request.tenant_id)
        return pb.BuyAddonResponse(
            addon=_addon(bought.addon), credits=bought.credits, replayed=bought.replayed
        )

    async def CancelAddon(self, request: pb.CancelAddonRequest, context: Context) -> pb.CancelAddonResponse:
        try:
            shown, replayed = await addons.cancel_addon(
                self._room.engine,
                self._room.ledger,
                tenant_id=request.tenant_id,
                idempotency_key=request.idempotency_key,
                tenant_addon_id=request.tenant_addon_id,
                clock=self._room.clock,
            )
        finally:
            await self._room.reconciler.attempt(request.tenant_id)
        return pb.CancelAddonResponse(addon=_addon(shown), replayed=replayed)

    async def ResumeAddon(self, request: pb.ResumeAddonRequest, context: Context) -> pb.ResumeAddonResponse:
        # A refusal may have paused the add-on, which the ledger has to hear as well.
        try:
            resumed = await addons.resume_addon(
                self._room.engine,
                self._room.ledger,
                tenant_id=request.tenant_id,
                idempotency_key=request.idempotency_key,
                tenant_addon_id=request.tenant_addon_id,
                clock=self._room.clock,
            )
        finally:
            await self._room.reconciler.attempt(request.tenant_id)
        return pb.ResumeAddonResponse(
            addon=_addon(resumed.addon), credits=resumed.credits, replayed=resumed.replayed
        )

    async def ListTenantAddons(
        self, request: pb.ListTenantAddonsRequest, context: Context
    ) -> pb.ListTenantAddonsResponse:
        if request.page_token and not _TOKEN.fullmatch(request.page_token):
            raise messages.strange_token()
        size = request.page_size or messages.PAGE_SIZE_DEFAULT
        found = await addons.list_addons(
            self._room.engine,
            tenant_id=request.tenant_id,
            before=request.page_token or None,
            limit=size + 1,
        )
        shown = found[:size]
        return pb.ListTenantAddonsResponse(
            addons=[_addon(each) for each in shown],
            next_page_token=shown[-1].id if len(found) > size else "",
        )


def _addon(shown: Shown) -> pb.TenantAddon:
    return pb.TenantAddon(
        tenant_addon_id=shown.id,
        addon_code=shown.addon_id,
        units=shown.units,
        status=pb.AddonStatus.Value(f"ADDON_STATUS_{shown.status.upper()}"),
        next_renewal_at=messages.timestamp(shown.next_renewal),
        credits_per_period=shown.credits_per_period,
        created_at=messages.timestamp(shown.created_at),
    )
