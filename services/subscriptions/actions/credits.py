"""BuyCredits: purchase row first, then the provider's order, whose receipt is the purchase's id."""

from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import UnknownCreditPack
from services.subscriptions.rules.amounts import gst_inside
from services.subscriptions.rules.catalog import CreditPack
from services.subscriptions.rules.funding import PROVIDER
from services.subscriptions.rules.purchases import CURRENCY, PackPurchase
from services.subscriptions.rules.requests import assert_same
from services.subscriptions.store import catalog as catalog_store
from services.subscriptions.store import purchases
from services.subscriptions.store import subscriptions as subscription_store
from shared.database import transaction
from shared.ids import new_id


@dataclass(frozen=True)
class Ordered:
    """A purchase that the customer can pay."""

    purchase: PackPurchase
    order_id: str
    replayed: bool


async def buy_credits(
    engine: AsyncEngine, razorpay: Razorpay, *, tenant_id: str, idempotency_key: str, pack_code: str
) -> Ordered:
    """Begin or resume the purchase of a pack; the receipt makes the provider answer the same order again."""
    async with transaction(engine) as db:
        await subscription_store.lock_subscription(db, tenant_id)
        purchase = await purchases.find_purchase_by_key(db, tenant_id, idempotency_key)
        replayed = purchase is not None
        if purchase is not None:
            assert_same("BuyCredits", {"pack_code": purchase.pack_id}, {"pack_code": pack_code})
        else:
            pack = (await catalog_store.read_catalog(db)).credit_packs.get(pack_code)
            if pack is None:
                raise UnknownCreditPack(
                    f"there is no credit pack {pack_code}: see ListCreditPacks", pack_code=pack_code
                )
            purchase = _new_purchase(tenant_id, idempotency_key, pack)
            await purchases.insert_purchase(db, purchase)
    if purchase.provider_order_id is not None:
        return Ordered(purchase, purchase.provider_order_id, replayed)
    order = await razorpay.create_order(
        amount_paise=purchase.amount_paise,
        currency=purchase.currency,
        receipt=purchase.id,
        notes={"tenant_id": tenant_id, "purchase_id": purchase.id, "pack": purchase.pack_id},
    )
    async with transaction(engine) as db:
        await purchases.set_purchase_order(db, purchase.id, order.id)
    return Ordered(replace(purchase, provider_order_id=order.id), order.id, replayed)


def _new_purchase(tenant_id: str, idempotency_key: str, pack: CreditPack) -> PackPurchase:
    return PackPurchase(
        id=new_id("pur"),
        tenant_id=tenant_id,
        idempotency_key=idempotency_key,
        pack_id=pack.code,
        credits=pack.credits,
        amount_paise=pack.total_paise,
        tax_paise=gst_inside(pack.total_paise),
        currency=CURRENCY,
        provider=PROVIDER,
        provider_order_id=None,
        payment_id=None,
    )
