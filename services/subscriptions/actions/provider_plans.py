"""The provider's plans behind our prices: found or made once, since they can be neither changed nor deleted.

Pieces of Checkout and of applying the catalogue; each opens its own short transactions.
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules.catalog import CYCLES, Catalog, Cycle, Plan
from services.subscriptions.rules.funding import PROVIDER
from services.subscriptions.rules.purchases import CURRENCY
from services.subscriptions.store import catalog as store
from shared.database import transaction


async def ensure_provider_plan(
    engine: AsyncEngine,
    razorpay: Razorpay,
    plan: Plan,
    cycle: Cycle,
    *,
    total_paise: int,
    look: bool = False,
) -> str:
    """The provider's plan for this price: the one we remember, one that carries our notes, or a new one.

    `look` asks whether the remembered one is there: another account, or a new sandbox, does not have it.
    """
    async with transaction(engine) as db:
        remembered = await store.find_provider_plan(
            db, plan_id=plan.code, cycle=cycle, amount_paise=total_paise
        )
    if remembered is not None and (not look or await razorpay.plan_exists(remembered)):
        return remembered
    notes = {"plan_code": plan.code, "cycle": cycle, "amount_paise": str(total_paise)}
    found = await razorpay.find_plan(cycle=cycle, amount_paise=total_paise, currency=CURRENCY, notes=notes)
    made = found or await razorpay.create_plan(
        name=f"{plan.name} {cycle.capitalize()}",
        cycle=cycle,
        amount_paise=total_paise,
        currency=CURRENCY,
        notes=notes,
    )
    async with transaction(engine) as db:
        await store.insert_provider_plan(
            db,
            made,
            provider=PROVIDER,
            plan_id=plan.code,
            cycle=cycle,
            amount_paise=total_paise,
            currency=CURRENCY,
        )
    return made


async def ensure_all(engine: AsyncEngine, razorpay: Razorpay, catalog: Catalog) -> list[str]:
    """Provider plans for every price on sale, in the catalogue's order."""
    return [
        await ensure_provider_plan(
            engine, razorpay, plan, cycle, total_paise=plan.total_paise(cycle), look=True
        )
        for plan in catalog.plans.values()
        if plan.is_paid
        for cycle in CYCLES
    ]
