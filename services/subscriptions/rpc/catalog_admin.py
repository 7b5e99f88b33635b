"""SubscriptionsAdminService: the catalogue."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import catalog
from services.subscriptions.catalogue import load_catalog
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk


class CatalogAdmin(Desk):
    """ApplyCatalog."""

    async def ApplyCatalog(
        self, request: pb.ApplyCatalogRequest, context: Context
    ) -> pb.ApplyCatalogResponse:
        applied = await catalog.apply_catalog_once(
            self._room.engine,
            load_catalog(),
            idempotency_key=request.idempotency_key,
            actor=request.actor,
            reason=request.reason,
            dry_run=request.dry_run,
        )
        return pb.ApplyCatalogResponse(
            changes=[
                pb.CatalogChange(
                    kind=change.kind,
                    code=change.code,
                    change=change.change,
                    before=change.before,
                    after=change.after,
                )
                for change in applied.changes
            ],
            catalog_version=applied.version,
            replayed=applied.replayed,
        )
