"""CatalogService."""

from billing.subscriptions.v1 import catalog_pb2 as pb
from billing.subscriptions.v1 import catalog_pb2_grpc as pb_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import catalog as actions
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rules.amounts import MANDATE_CEILING_PAISE, format_inr, gst_inside
from services.subscriptions.rules.catalog import CYCLES, Addon, CreditPack, Cycle, Plan

_CADENCES = {"per_cycle": pb.CREDIT_CADENCE_PER_CYCLE, "monthly": pb.CREDIT_CADENCE_MONTHLY}


class CatalogService(pb_grpc.CatalogServiceServicer):
    """What is for sale."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ListPlans(self, request: pb.ListPlansRequest, context: Context) -> pb.ListPlansResponse:
        catalog = await actions.read_catalog(self._engine)
        plans = sorted(catalog.plans.values(), key=lambda plan: (plan.price_monthly_paise, plan.position))
        shown, following = messages.page(plans, request.page_size, request.page_token)
        return pb.ListPlansResponse(
            plans=[_plan(plan) for plan in shown], next_page_token=following, catalog_version=catalog.version
        )

    async def ListCreditPacks(
        self, request: pb.ListCreditPacksRequest, context: Context
    ) -> pb.ListCreditPacksResponse:
        catalog = await actions.read_catalog(self._engine)
        packs = sorted(catalog.credit_packs.values(), key=lambda pack: (pack.credits, pack.position))
        shown, following = messages.page(packs, request.page_size, request.page_token)
        return pb.ListCreditPacksResponse(
            credit_packs=[_pack(pack) for pack in shown], next_page_token=following
        )

    async def ListAddons(self, request: pb.ListAddonsRequest, context: Context) -> pb.ListAddonsResponse:
        catalog = await actions.read_catalog(self._engine)
        addons = sorted(catalog.addons.values(), key=lambda addon: addon.code)
        shown, following = messages.page(addons, request.page_size, request.page_token)
        return pb.ListAddonsResponse(addons=[_addon(addon) for addon in shown], next_page_token=following)

    async def ListCreditCosts(
        self, request: pb.ListCreditCostsRequest, context: Context
    ) -> pb.ListCreditCostsResponse:
        catalog = await actions.read_catalog(self._engine)
        costs = sorted(catalog.credit_costs.values(), key=lambda cost: cost.action)
        shown, following = messages.page(costs, request.page_size, request.page_token)
        return pb.ListCreditCostsResponse(
            credit_costs=[
                pb.CreditCost(action=cost.action, credits=cost.credits, description=cost.description)
                for cost in shown
            ],
            next_page_token=following,
        )


def _plan(plan: Plan) -> pb.Plan:
    services: dict[str, list[pb.Limit]] = {}
    for path, value in sorted(plan.limits.items()):
        service, key = path.split(".", 1)
        services.setdefault(service, []).append(messages.limit(key, value))
    return pb.Plan(
        code=plan.code,
        name=plan.name,
        prices=[_price(plan, cycle) for cycle in CYCLES] if plan.is_paid else [],
        yearly_discount_pct=plan.yearly_discount_pct,
        base_credits=plan.base_credits,
        credit_cadence=_CADENCES[plan.credit_cadence],
        trial_days=plan.trial_days,
        trial_credits=plan.trial_credits,
        services=[
            pb.ServiceLimits(service_code=service, limits=limits) for service, limits in services.items()
        ],
    )


def _price(plan: Plan, cycle: Cycle) -> pb.Price:
    total = plan.total_paise(cycle)
    return pb.Price(
        cycle=messages.CYCLES[cycle],
        amount_paise=plan.price_paise(cycle),
        tax_paise=plan.tax_paise(cycle),
        total_paise=total,
        total_display=format_inr(total),
        exceeds_mandate_ceiling=total > MANDATE_CEILING_PAISE,
        credits=plan.credits(cycle),
    )


def _pack(pack: CreditPack) -> pb.CreditPack:
    return pb.CreditPack(
        code=pack.code,
        name=pack.name,
        credits=pack.credits,
        total_paise=pack.total_paise,
        tax_paise=gst_inside(pack.total_paise),
        total_display=format_inr(pack.total_paise),
    )


def _addon(addon: Addon) -> pb.Addon:
    service, key = addon.limit.split(".", 1)
    return pb.Addon(
        code=addon.code,
        name=addon.name,
        service_code=service,
        limit_key=key,
        quantity=addon.quantity,
        credits=addon.credits,
        period_days=addon.period_days,
    )
