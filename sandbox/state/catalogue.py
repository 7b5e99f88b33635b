"""Plans and customers."""

import re

from sandbox import entities
from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state import checks
from sandbox.state.world import Record, World

LONGEST_INTERVAL = 4_000
PERIODS = ("daily", "weekly", "monthly", "quarterly", "yearly")
_NAME = re.compile(r"[A-Za-z0-9 .'&()@/_-]{3,50}")


def create_plan(world: World, request: Entity) -> Record:
    """A plan; it can never be changed or deleted."""
    checks.only(request, "period interval item notes")
    period = checks.required(request, "period")
    if period not in PERIODS:
        raise Refusal(f"Not a valid period: {period}", field="period")
    interval = checks.whole(request, "interval", least=1, most=LONGEST_INTERVAL)
    if period == "daily" and interval < 7:
        raise Refusal("For daily plans, minimum interval is 7", field="interval")
    price = checks.item(request)
    notes = checks.notes(request)
    return world.add(
        "plan", entities.plan(period=period, interval=interval, item=price, notes=notes, now=world.now())
    )


def create_customer(world: World, request: Entity) -> Record:
    """A customer, or with fail_existing "0" the one that is there already."""
    checks.only(request, "name email contact fail_existing gstin notes")
    name, email, contact = _contact_details(request)
    for existing in world.all("customer"):
        if (existing.entity["email"], existing.entity["contact"]) == (email, contact) and (email or contact):
            if checks.truth(request.get("fail_existing", "1")):
                raise Refusal("Customer already exists for the merchant")
            return existing
    notes = checks.notes(request)
    entity = entities.customer(name=name, email=email, contact=contact, notes=notes, now=world.now())
    entity["gstin"] = checks.text(request, "gstin")
    return world.add("customer", entity)


def edit_customer(world: World, customer_id: str, request: Entity) -> Record:
    """Changes name, email, contact or GSTIN."""
    checks.only(request, "name email contact gstin")
    customer = world.edit("customer", customer_id)
    name, email, contact = _contact_details(customer.entity | request)
    customer.entity.update(name=name, email=email, contact=contact)
    customer.entity["gstin"] = checks.text(customer.entity | request, "gstin")
    return customer


def _contact_details(request: Entity) -> tuple[str | None, str | None, str | None]:
    name, email, contact = request.get("name"), request.get("email"), request.get("contact")
    # Razorpay's narrow alphabet: a tenant named in Hindi is refused, so nobody may depend on this call.
    if name is not None and not _NAME.fullmatch(str(name)):
        raise Refusal("The name format is invalid.", field="name")
    if email is not None and "@" not in str(email):
        raise Refusal("The email must be a valid email address.", field="email")
    if contact is not None and len(re.sub(r"\D", "", str(contact))) < 8:
        raise Refusal("Contact number should be at least 8 digits, including country code", field="contact")
    return name, email, None if contact is None else str(contact)
