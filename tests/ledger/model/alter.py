"""The same request with one field changed, for every field that is part of its content."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Who asks, and how it is asked: not part of what is asked.
NOT_CONTENT = {"tenant_id", "idempotency_key", "dry_run"}
# Fields that cannot change alone: the contract ties them to another.
TIED = {("GrantCreditsRequest", "bucket"), ("AdjustCreditsRequest", "bucket")}
# An unspecified policy is the first one; where positive credits go unless named.
WORDS = {"reason": {"admin.refund": "admin.adjustment", "admin.adjustment": "admin.refund"}}


def alterations(request: Message) -> list[tuple[str, Message]]:
    """(the field that differs, the altered request)"""
    altered = []
    for field in request.DESCRIPTOR.fields:
        if field.name in NOT_CONTENT or (request.DESCRIPTOR.name, field.name) in TIED:
            continue
        copied = type(request)()
        copied.CopyFrom(request)
        if _change(copied, field):
            altered.append((field.name, copied))
    return altered


def _change(request: Message, field: Any) -> bool:
    name, value = field.name, getattr(request, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value["altered"] = "yes"
    elif field.is_repeated:
        if not value:
            return False
        value[0].amount += 1
    elif field.message_type is not None:
        if not request.HasField(name):
            return False
        value.seconds += -1 if value.seconds > 1 else 1
    elif field.enum_type is not None:
        setattr(request, name, 2 if max(value, 1) == 1 else 1)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        if name == "more_follows" and not getattr(request, "credits", 1):
            return False  # spending nothing is for the last capture
        setattr(request, name, not value)
    elif field.type == FieldDescriptor.TYPE_STRING:
        setattr(request, name, WORDS.get(name, {}).get(value) or value + "x")
    elif name == "min_credits" and request.HasField(name):
        changed = value - 1 if value > 1 else 2  # never more than is asked
        setattr(request, name, changed)
        return bool(changed <= getattr(request, "credits", 0))
    elif field.containing_oneof is not None and not request.HasField(name):
        return _set_absent(request, field)
    else:
        setattr(request, name, value + 1 if value != -1 else -2)
    return True


def _set_absent(request: Message, field: Any) -> bool:
    """An optional number that was absent; one of a group of alternatives would take the other's place."""
    if len(field.containing_oneof.fields) > 1:
        return False
    if field.name == "min_credits" and getattr(request, "credits", 0) < 2:
        return False  # as much as asked is what absent means
    setattr(request, field.name, 1)
    return True
