"""The questions that Razorpay asks of every request."""

from typing import Any

from sandbox.entities import Entity
from sandbox.errors import Refusal
from sandbox.state.world import Record, World

SMALLEST_AMOUNT = 100
LARGEST_AMOUNT = 10**12
LARGEST_NUMBER = 2**31 - 1
# Razorpay's own bounds of a moment: the years 2000 to 2120.
EARLIEST, LATEST = 946_684_800, 4_765_046_400


def only(request: Entity, allowed: str) -> None:
    """Refuses fields nobody asked for, as Razorpay does."""
    if extra := sorted(set(request) - set(allowed.split())):
        raise Refusal(f"{', '.join(extra)} is/are not required and should not be sent", field=extra[0])


def required(request: Entity, name: str) -> Any:
    """The field, or the refusal that names it."""
    value = request.get(name)
    if value is None or value == "":
        raise Refusal(f"The {name.replace('_', ' ')} field is required.", field=name)
    return value


def amount(request: Entity, name: str = "amount") -> int:
    """A whole number of paise, at least one rupee."""
    value = whole(request, name, most=2**63)
    if value > LARGEST_AMOUNT:
        raise Refusal("Amount exceeds maximum amount allowed.", field=name)
    if value < SMALLEST_AMOUNT:
        raise Refusal("The amount must be at least INR 1.00.", field=name)
    return value


def moment(request: Entity, name: str) -> int:
    """A unix second of this century."""
    value = whole(request, name, most=2**63)
    if not EARLIEST <= value <= LATEST:
        raise Refusal(f"The {name.replace('_', ' ')} must be between {EARLIEST} and {LATEST}.", field=name)
    return value


def text(request: Entity, name: str, *, most: int = 255) -> str | None:
    """Words, or nothing at all."""
    value = request.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refusal(f"The {name.replace('_', ' ')} must be a string.", field=name)
    if len(value) > most:
        raise Refusal(f"The {name.replace('_', ' ')} may not be greater than {most} characters.", field=name)
    return value


def item(request: Entity) -> Entity:
    """What is sold: a name and a price."""
    value = required(request, "item")
    if not isinstance(value, dict):
        raise Refusal("The item must be an array.", field="item")
    required(value, "name")
    words = {"name": text(value, "name"), "description": text(value, "description")}
    return value | words | {"amount": amount(value), "currency": currency(value)}


def whole(request: Entity, name: str, *, least: int | None = None, most: int = LARGEST_NUMBER) -> int:
    """A whole number; digits in a string count, fractions and booleans do not."""
    value = required(request, name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(f"The {name.replace('_', ' ')} must be an integer.", field=name)
    if least is not None and value < least:
        raise Refusal(f"The {name.replace('_', ' ')} must be at least {least}.", field=name)
    if abs(value) > most:
        raise Refusal(f"The {name.replace('_', ' ')} may not be greater than {most}.", field=name)
    return value


def now_only(request: Entity, name: str) -> None:
    """A moment that can only be the word now."""
    if request.get(name, "now") != "now":
        raise Refusal(f"The selected {name.replace('_', ' ')} is invalid.", field=name)


def names(value: Any, field: str) -> list[str] | None:
    """A list of words, or nothing at all."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Refusal(f"The {field} must be a list of names.", field=field)
    return value


def truth(value: Any) -> bool:
    """Booleans as the SDKs have sent them over the years."""
    return not isinstance(value, list | dict) and value in (True, 1, "1", "true")


def notes(request: Entity) -> Any:
    """At most fifteen short pairs."""
    value = request.get("notes")
    if value is None or value in ([], {}):
        return []
    if not isinstance(value, dict):
        raise Refusal("The notes must be an array.", field="notes")
    if len(value) > 15:
        raise Refusal("Number of fields in notes should be less than or equal to 15", field="notes")
    if any(len(str(item)) > 256 for item in value.values()):
        raise Refusal("The notes value may not be greater than 256 characters.", field="notes")
    return value


def edit_notes(world: World, kind: str, entity_id: str, request: Entity) -> Record:
    """The one thing that can be changed about money afterwards."""
    only(request, "notes")
    record = world.edit(kind, entity_id)
    record.entity["notes"] = notes({"notes": required(request, "notes")})
    return record


def currency(request: Entity) -> str:
    """Three capital letters."""
    value = request.get("currency", "INR")
    if not (isinstance(value, str) and len(value) == 3 and value.isalpha() and value.isupper()):
        raise Refusal("The currency is not supported", field="currency")
    return value
