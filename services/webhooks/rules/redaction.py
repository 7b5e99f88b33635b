"""Bodies as an operator may see them: what happened stays, who it happened to does not.

Fails closed: a text is shown only under a name known to be harmless and in the shape that such texts have.
"""

import json
import re
from typing import Any

from services.webhooks.errors import Poison
from services.webhooks.rules import bodies
from shared import sensitive

REDACTED = "[redacted]"
# A screenful; an answer that is larger than this does not fit through the door.
SHOWN_MAX = 1 << 20
_INDENTED_MAX = 16 << 10

_WORDS = frozenset({
    "id", "entity", "event", "contains", "status", "currency", "method", "type", "phase", "network", "bank", "wallet",
    "issuer", "flow", "source", "receipt", "account_id", "order_id", "invoice_id", "payment_id", "customer_id",
    "subscription_id", "plan_id", "token_id", "card_id", "offer_id", "item_id", "refund_id", "dispute_id",
    "payment_method", "payer_account_type", "refund_status", "reason_code", "error_code", "error_reason",
    "error_source", "error_step", "cancel_initiated_by", "pause_initiated_by", "speed_requested", "speed_processed",
})  # fmt: skip
# Numbers and flags that providers also send as texts.
_FIGURES = frozenset({
    "amount", "amount_due", "amount_paid", "amount_refunded", "amount_deducted", "base_amount", "net_amount",
    "gross_amount", "fee", "tax", "captured", "international", "attempts", "auth_attempts", "paid_count", "total_count",
    "remaining_count", "quantity", "created_at", "current_start", "current_end", "charge_at", "start_at", "end_at",
    "ended_at", "paid_at", "issued_at", "cancelled_at", "billing_start", "billing_end", "respond_by", "expire_by",
})  # fmt: skip
_OUR_NOTES = frozenset({
    "tenant_id", "plan_code", "cycle", "amount_paise", "intent_id", "purchase_id", "purpose", "pack", "kind", "refund_id",
    "change_id", "addon_code",
})  # fmt: skip
# A name that has one of these words hides whatever it holds, numbers and whole objects too.
_PERSONAL = frozenset({
    "email", "contact", "phone", "mobile", "tel", "telephone", "whatsapp", "fax", "name", "vpa", "upi", "address", "street",
    "line1", "line2", "city", "state", "zip", "zipcode", "pincode", "postcode", "latitude", "longitude", "geo", "gstin",
    "pan", "aadhaar", "aadhar", "passport", "dob", "birth", "birthday", "age", "gender", "ip", "ifsc", "beneficiary",
    "holder", "rrn", "arn", "iin", "bin", "last4", "expiry", "cvv", "cvc", "pin", "otp", "acs", "utr", "umrn", "signature",
    "secret", "password", "fingerprint", "device", "account", "transaction", "auth",
})  # fmt: skip
_SMALL, _LARGEST = 10**8, 10**12
# Names of the lists above that have such a word all the same.
_HARMLESS = _WORDS | _FIGURES

_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# No telephone of ours begins with 1; moments until 2033 do.
_FIGURE = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,4})?|1[0-9]{9}|true|false")
_DAY = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}[0-9:.]{0,16}(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
# Seven digits may be a telephone's; ids of providers have letters among theirs.
_LONG_NUMBER = re.compile(r"[0-9][0-9.:/_-]{5,}[0-9]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PARTS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def redacted(body: bytes) -> str:
    """The body as JSON without personal values, or Poison when it is no JSON or too large to show."""
    clean = _redact(bodies.parse(body), "")
    shown = json.dumps(clean, ensure_ascii=False, indent=2 if len(body) <= _INDENTED_MAX else None)
    if len(shown) > SHOWN_MAX:
        raise Poison("body_too_large_to_show")
    return shown


def _redact(value: Any, name: str) -> Any:
    if value is None or value in ("", [], {}, bodies.MASK):
        return value
    if name == "notes":
        return _notes(value)
    if name not in _HARMLESS and _is_personal(name):
        return REDACTED
    if isinstance(value, dict):
        return _object(value)
    if isinstance(value, list):
        return [_redact(content, name) for content in value]
    return value if _may_be_shown(value, name) else REDACTED


def _object(value: dict[str, Any]) -> dict[str, Any]:
    # A name that is none may be somebody's; numbered, so that one does not cover another.
    return {
        name if _NAME.fullmatch(name) else f"{REDACTED} {place}": _redact(content, name)
        for place, (name, content) in enumerate(value.items())
    }


def _notes(value: Any) -> Any:
    # What people wrote into notes is theirs, names included; only what we put there ourselves is shown.
    if not isinstance(value, dict):
        return REDACTED
    return {
        name if name in _OUR_NOTES else f"{REDACTED} {place}": content
        if name in _OUR_NOTES and isinstance(content, str) and _is_word(content)
        else REDACTED
        for place, (name, content) in enumerate(value.items())
    }


def _may_be_shown(value: Any, name: str) -> bool:
    if sensitive.is_forbidden(name, value):
        return False
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        # Of unknown names only what is too short for a telephone's number.
        known = name in _FIGURES or name == "date" or name.endswith("_at")
        return abs(value) < (_LARGEST if known else _SMALL)
    if name in _WORDS and _is_word(value):
        return True
    if name in _FIGURES and _FIGURE.fullmatch(value):
        return True
    return name.endswith("_at") and _DAY.fullmatch(value) is not None


def _is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None and _LONG_NUMBER.fullmatch(text) is None


def _is_personal(name: str) -> bool:
    return any(part.lower() in _PERSONAL for part in _PARTS.findall(name))
