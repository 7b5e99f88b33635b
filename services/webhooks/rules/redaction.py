"""Bodies as an operator may see them: what happened stays, who it happened to does not."""

import json
from typing import Any

from services.webhooks.rules import bodies
from shared import sensitive

REDACTED = "[redacted]"
_PERSONAL = frozenset({
    "email", "contact", "phone", "name", "customer_name", "customer_email", "customer_contact", "vpa",
    "upi", "billing_address", "shipping_address", "address", "line1", "line2", "city", "zipcode",
    "pincode", "gstin", "ip", "bank_account", "ifsc", "beneficiary_name", "account_holder", "rrn",
    "auth_code", "upi_transaction_id", "bank_transaction_id", "arn", "token_iin",
})  # fmt: skip


def redacted(body: bytes) -> str:
    """The body as JSON without personal values, or Poison when it is no JSON."""
    shown = json.dumps(_redact(bodies.parse(body)), ensure_ascii=False, indent=2)
    return shown.encode("utf-8", "replace").decode()  # JSON may escape halves of characters


def _redact(value: Any, name: str = "") -> Any:
    if name.lower() in _PERSONAL and value not in (None, "", [], {}):
        return REDACTED
    if isinstance(value, dict):
        # What people wrote into notes is theirs; only the keys that we put there ourselves are shown.
        if name == "notes":
            return {key: content if key in _OUR_NOTES else REDACTED for key, content in value.items()}
        return {key: _redact(content, key) for key, content in value.items()}
    if isinstance(value, list):
        return [_redact(content, name) for content in value]
    if isinstance(value, str) and (sensitive.looks_like_card(value) or name == "description"):
        return REDACTED
    return value


_OUR_NOTES = frozenset({
    "tenant_id", "plan_code", "cycle", "intent_id", "purchase_id", "purpose", "pack", "kind",
    "change_id", "addon_code",
})  # fmt: skip
