"""A subscription's money: first charge, renewals, failures, and what is due."""

from sandbox import entities
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import addons, payments, refunds, subscriptions
from sandbox.state.world import Record, World

ATTEMPTS = 4
RETRY_AFTER = 86_400
RECURRING = "Recurring Payment via Subscription"


def authenticate(
    world: World,
    subscription_id: str,
    *,
    method: str,
    international: bool = False,
    anonymous: bool = False,
    token_paise: int = 0,
) -> Record:
    """The customer sets up the mandate: charged is what was asked upfront, or a token that goes back at once."""
    subscription = world.edit("subscription", subscription_id)
    if subscription.entity["status"] != "created":
        raise Refusal(f"The subscription is already {subscription.entity['status']}")
    _refuse_late(world, subscription)
    start_at = subscription.entity["start_at"]
    if start_at and start_at <= world.now():
        raise Refusal(
            "Subscription's start time is past the current time. Cannot do an auth transaction now.",
            field="start_at",
        )
    _set_up_mandate(world, subscription, method=method, international=international, anonymous=anonymous)
    if extras := addons.take(subscription):
        bill(world, subscription, 0, extras)
        _collect(world, subscription, description=extras[0]["item"]["name"])
    elif token_paise:
        _token_payment(world, subscription, token_paise)
    subscription.entity["charge_at"] = subscription.entity["start_at"] or world.now()
    subscription.entity["status"] = "authenticated"
    subscriptions.announce(world, "authenticated", subscription)
    return subscription


def _refuse_late(world: World, subscription: Record) -> None:
    expire_by = subscription.entity["expire_by"]
    if expire_by and expire_by < world.now():
        raise Refusal("The link of this subscription has expired", field="expire_by")


def _token_payment(world: World, subscription: Record, paise: int) -> None:
    # Captured like a sale and refunded on its own: what a receiver must neither grant nor claw back.
    entity = entities.order(amount=paise, currency="INR", receipt=None, notes=[], now=world.now())
    order = world.add("order", entity, capture=True)
    payment = payments.authorize(
        world, order, subscription.inner["instrument"], description="Authorization charge"
    )
    world.emit("payment.authorized", ["payment"], payment=payment.entity)
    payments.take(world, payment, order)
    payments.announce_capture(world, payment, order)
    subscription.inner["last_payment_id"] = payment.entity["id"]
    refund, _ = refunds.create_refund(world, payment.entity["id"], {})
    refunds.process_refund(world, refund.entity["id"])


def _set_up_mandate(
    world: World, subscription: Record, *, method: str, international: bool, anonymous: bool = False
) -> None:
    # Some UPI apps tell Razorpay nothing about who pays.
    if subscription.entity["customer_id"] is None and not anonymous:
        customer = entities.customer(
            name=None,
            email=entities.DEFAULT_EMAIL,
            contact=entities.DEFAULT_CONTACT,
            notes=[],
            now=world.now(),
        )
        subscription.entity["customer_id"] = world.add("customer", customer).entity["id"]
    subscription.entity["payment_method"] = method
    subscription.inner["instrument"] = payments.instrument(
        method,
        customer_id=subscription.entity["customer_id"],
        international=international,
        token=method != "netbanking",
    )
    if anonymous:
        subscription.inner["instrument"] |= {"email": entities.NO_EMAIL, "contact": entities.BARE_CONTACT}


def pay(
    world: World,
    subscription_id: str,
    *,
    method: str | None = None,
    international: bool = False,
    anonymous: bool = False,
) -> Record:
    """The next charge succeeds, whichever it is: first, after a trial, renewal, or recovery. Answers the payment."""
    subscription = world.edit("subscription", subscription_id)
    match subscription.entity["status"]:
        case "created":
            if subscription.entity["start_at"]:
                raise Refusal("This subscription starts later: authenticate it, then charge it")
            _refuse_late(world, subscription)
            _set_up_mandate(
                world,
                subscription,
                method=method or "card",
                international=international,
                anonymous=anonymous,
            )
            return _first_charge(world, subscription)
        case "authenticated" | "active" | "pending" | "halted" as status:
            if method:
                _set_up_mandate(world, subscription, method=method, international=international)
            return _next_charge(world, subscription, status)
        case status:
            raise Refusal(f"A subscription cannot be charged in {status} status", field="status")


def _first_charge(world: World, subscription: Record) -> Record:
    """Seven events about one payment."""
    entity = subscription.entity
    _start(world, subscription)
    name = _plan(world, subscription)["item"]["name"]
    authenticated = entity | {"status": "authenticated"}
    _open_cycle(world, subscription, entity["start_at"])
    _, _, payment = _collect(world, subscription, description=name)
    world.emit("subscription.authenticated", ["subscription"], subscription=authenticated)
    _settle_cycle(subscription)
    # Razorpay's own sample lists only the subscription although the payment is there.
    world.emit(
        "subscription.activated",
        ["subscription"],
        subscription=subscription.entity,
        payment=payment.entity,
    )
    _announce_charge(world, subscription, payment)
    _complete_if_last(world, subscription, payment)
    return payment


def _next_charge(world: World, subscription: Record, status: str) -> Record:
    if status == "authenticated":
        _start(world, subscription)
        _open_cycle(world, subscription, subscription.entity["start_at"])
        subscription.entity["status"] = "active"
        at_trial_end = subscription.entity | {"charge_at": subscription.entity["current_start"]}
        _, _, payment = _collect(world, subscription, description=RECURRING)
        world.emit("subscription.activated", ["subscription"], subscription=at_trial_end)
        _settle_cycle(subscription)
        _announce_charge(world, subscription, payment)
    elif status in ("pending", "halted"):
        _, _, payment = _collect(world, subscription, description=RECURRING)
        _settle_cycle(subscription)
        # Documented inversion: after a failure the charge is told before the activation.
        _announce_charge(world, subscription, payment)
        subscriptions.announce(world, "activated", subscription)
    else:
        _open_cycle(world, subscription, subscription.entity["charge_at"])
        _, _, payment = _collect(world, subscription, description=RECURRING)
        _settle_cycle(subscription)
        _announce_charge(world, subscription, payment)
    _complete_if_last(world, subscription, payment)
    return payment


def _start(world: World, subscription: Record) -> None:
    """Fixes the second from which all cycles are counted: the promised start, or now."""
    entity = subscription.entity
    entity["start_at"] = entity["start_at"] or world.now()
    entity["charge_at"] = entity["start_at"]
    entity["end_at"] = subscriptions.cycle_end(world, subscription, entity["start_at"], entity["total_count"])


def _plan(world: World, subscription: Record) -> Entity:
    return world.get("plan", subscription.entity["plan_id"]).entity


def _open_cycle(world: World, subscription: Record, start: int) -> None:
    """Starts the next period with its invoice and order."""
    entity = subscription.entity
    if subscription.inner["cycles"] >= entity["total_count"]:
        raise Refusal("All billing cycles of the subscription are done", field="status")
    _apply_scheduled_change(subscription)
    subscription.inner["cycles"] += 1
    entity["current_start"] = start
    cycles = subscription.inner["cycles"]
    entity["current_end"] = subscriptions.cycle_end(world, subscription, entity["start_at"], cycles)
    entity["remaining_count"] = entity["total_count"] - subscription.inner["cycles"]
    amount = _plan(world, subscription)["item"]["amount"] * entity["quantity"]
    bill(world, subscription, amount, addons.take(subscription))


def bill(world: World, subscription: Record, amount: int, extras: list[Entity]) -> Record:
    """An issued invoice with the order behind it, for the current period; 0 leaves the plan out."""
    plan, entity, now = _plan(world, subscription), subscription.entity, world.now()
    lines = [
        entities.line_item(extra["item"], amount=addons.amount([extra]), quantity=extra["quantity"])
        for extra in extras
    ]
    if amount:
        lines.insert(0, entities.line_item(plan["item"], amount=amount, quantity=entity["quantity"]))
    total, currency = amount + addons.amount(extras), plan["item"]["currency"]
    order = world.add(
        "order",
        entities.order(amount=total, currency=currency, receipt=None, notes=[], now=now),
        capture=True,
    )
    invoice = world.add(
        "invoice",
        entities.invoice(
            subscription_entity=entity,
            lines=lines,
            order_entity=order.entity,
            start=entity["current_start"],
            end=entity["current_end"],
            now=now,
        ),
    )
    order.inner["invoice_id"] = invoice.entity["id"]
    subscription.inner["invoice_id"] = invoice.entity["id"]
    return invoice


def _apply_scheduled_change(subscription: Record) -> None:
    if change := subscription.inner.pop("scheduled_change", None):
        subscription.entity |= change
        subscription.entity["has_scheduled_changes"] = False


def _attempt(world: World, subscription: Record, description: str) -> tuple[Record, Record, Record]:
    invoice = world.edit("invoice", subscription.inner["invoice_id"])
    order = world.edit("order", invoice.entity["order_id"])
    payment = payments.authorize(
        world,
        order,
        subscription.inner["instrument"],
        description=description,
        invoice_id=invoice.entity["id"],
    )
    return invoice, order, payment


def _collect(world: World, subscription: Record, *, description: str) -> tuple[Record, Record, Record]:
    """Takes the open invoice's money: authorised, captured, order paid, invoice paid."""
    invoice, order, payment = _attempt(world, subscription, description)
    world.emit("payment.authorized", ["payment"], payment=payment.entity)
    payments.take(world, payment, order)
    invoice.entity.update(
        status="paid",
        payment_id=payment.entity["id"],
        paid_at=world.now(),
        amount_paid=invoice.entity["amount"],
        amount_due=0,
    )
    payments.announce_capture(world, payment, order)
    world.emit(
        "invoice.paid",
        ["payment", "order", "invoice"],
        payment=payment.entity,
        order=order.entity,
        invoice=invoice.entity,
    )
    subscription.inner.update(invoice_id=None, last_payment_id=payment.entity["id"])
    return invoice, order, payment


def collect_extra(world: World, subscription: Record, amount: int) -> Record:
    """Charges a difference within the period, with its own invoice; the open invoice of the cycle stays as it is."""
    open_invoice = subscription.inner.get("invoice_id")
    bill(world, subscription, amount, [])
    _, _, payment = _collect(world, subscription, description=RECURRING)
    subscription.inner["invoice_id"] = open_invoice
    return payment


def _settle_cycle(subscription: Record) -> None:
    entity = subscription.entity
    entity["paid_count"] += 1
    entity.update(status="active", auth_attempts=0, charge_at=entity["current_end"])


def _announce_charge(world: World, subscription: Record, payment: Record) -> None:
    # The documented sample of this one event has the string "1" where all others have true.
    world.emit(
        "subscription.charged",
        ["subscription", "payment"],
        subscription=subscription.entity,
        payment=payment.entity | {"captured": "1"},
    )


def _complete_if_last(world: World, subscription: Record, payment: Record) -> None:
    if subscription.entity["remaining_count"] > 0:
        return
    subscription.entity.update(status="completed", ended_at=world.now(), charge_at=None)
    world.emit(
        "subscription.completed",
        ["subscription", "payment"],
        subscription=subscription.entity,
        payment={name: value for name, value in payment.entity.items() if name != "token_id"},
    )


def fail(world: World, subscription_id: str) -> Record:
    """The next charge fails: pending three times, then halted. A first payment that fails leaves no mark."""
    subscription = world.edit("subscription", subscription_id)
    entity = subscription.entity
    match entity["status"]:
        case "created":
            return _fail_first(world, subscription)
        case "authenticated":
            _start(world, subscription)
            _open_cycle(world, subscription, entity["start_at"])
        case "active":
            _open_cycle(world, subscription, entity["charge_at"])
        case "pending":
            pass
        case status:
            raise Refusal(f"A charge cannot fail in {status} status", field="status")
    _, _, payment = _attempt(world, subscription, RECURRING)
    payments.decline(world, payment)
    entity["auth_attempts"] += 1
    if entity["auth_attempts"] < ATTEMPTS:
        before = entity["charge_at"] if entity["status"] == "pending" else entity["current_start"]
        entity.update(status="pending", charge_at=before + RETRY_AFTER)
        subscriptions.announce(world, "pending", subscription)
    else:
        entity.update(status="halted", charge_at=entity["current_end"])
        subscriptions.announce(world, "halted", subscription)
    return payment


def bill_without_charging(world: World, subscription: Record) -> None:
    """A halted subscription's next invoice: issued and left lying; without cycles left it is completed."""
    entity = subscription.entity
    if not entity["remaining_count"]:
        entity.update(status="completed", ended_at=world.now(), charge_at=None)
        subscriptions.announce(world, "completed", subscription)
        return
    _open_cycle(world, subscription, entity["current_end"])
    entity["charge_at"] = entity["current_end"]


def _fail_first(world: World, subscription: Record) -> Record:
    item = _plan(world, subscription)["item"]
    entity = entities.order(
        amount=item["amount"] * subscription.entity["quantity"],
        currency=item["currency"],
        receipt=None,
        notes=[],
        now=world.now(),
    )
    order = world.add("order", entity, capture=True, subscription_id=subscription.entity["id"])
    payment = payments.authorize(world, order, payments.instrument("card"), description=None)
    payments.decline(world, payment)
    return payment
