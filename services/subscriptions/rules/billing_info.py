"""Who the customer is, as tax invoices name it."""

import unicodedata
from dataclasses import dataclass, fields, replace

from services.subscriptions.errors import GstinInvalid
from services.subscriptions.rules import gstin as gst
from shared.errors import InvalidArgument

INDIA = "IN"


@dataclass(frozen=True)
class BillingInfo:
    """The details that a tenant gave; whatever it did not give is empty."""

    company_name: str = ""
    gstin: str = ""
    address_line1: str = ""
    address_line2: str = ""
    city: str = ""
    state_code: str = ""
    postal_code: str = ""
    country: str = ""
    email: str = ""

    @property
    def is_abroad(self) -> bool:
        """An empty country is India."""
        return self.country not in ("", INDIA)

    @property
    def state(self) -> str:
        """The Indian state that is known of it; empty: none is."""
        return self.state_code or (gst.state_of(self.gstin) if self.gstin else "")


def accept(given: BillingInfo) -> BillingInfo:
    """The details as they are stored; refuses what no tax invoice could carry, naming every field at once."""
    info = BillingInfo(
        **{field.name: " ".join(getattr(given, field.name).split()) for field in fields(given)}
    )
    info = replace(info, gstin=info.gstin.upper(), country=info.country.upper())
    wrong = [
        (f"billing_info.{field}", words) for field, words in (*_unprintable(info), *_contradictions(info))
    ]
    if info.gstin and (flaw := gst.flaw(info.gstin)):
        raise GstinInvalid(
            f"the GSTIN {info.gstin} {flaw}",
            violations=[("billing_info.gstin", f"{flaw}; leave it empty if unregistered"), *wrong],
            gstin=info.gstin,
        )
    if wrong:
        raise InvalidArgument("no tax invoice can carry these billing details", violations=wrong)
    return info


def _unprintable(info: BillingInfo) -> list[tuple[str, str]]:
    return [
        (field.name, "holds a control character: leave it out")
        for field in fields(info)
        if any(unicodedata.category(character) == "Cc" for character in getattr(info, field.name))
    ]


def _contradictions(info: BillingInfo) -> list[tuple[str, str]]:
    if info.is_abroad:
        return [
            (field, f"belongs to India and the country is {info.country}: leave one of them empty")
            for field in ("gstin", "state_code")
            if getattr(info, field)
        ]
    if info.state_code and info.state_code not in gst.STATES:
        return [("state_code", f"{info.state_code} is no GST state code: 27 is Maharashtra, 29 Karnataka")]
    registered = gst.state_of(info.gstin) if info.gstin and not gst.flaw(info.gstin) else ""
    if info.state_code and registered and info.state_code != registered:
        return [
            (
                "state_code",
                f"the GSTIN is registered in {registered} ({gst.state_name(registered)}): pass that or nothing",
            )
        ]
    return []
