"""Requests are checked against the constraints written in the contract, all fields at once."""

from typing import Any

import protovalidate
from google.protobuf.message import Message

from shared import errors

_validator = protovalidate.Validator()


def check(request: Message) -> None:
    """Raises InvalidArgument naming every field that breaks its contract."""
    try:
        _validator.validate(request)
    except protovalidate.ValidationError as error:
        violations = [_describe(each.proto) for each in error.violations]
        # The sentence says it all as well: not every client shows the details of a status.
        sentence = "; ".join(f"{field} {what}" for field, what in violations[:5])
        raise errors.InvalidArgument(sentence, violations=violations) from None


def _describe(violation: Any) -> tuple[str, str]:
    field, message = _path(violation), violation.message
    if not field:
        # A rule over the whole message names its field first: "min_credits: must not be …".
        field, _, rest = message.partition(": ")
        return field, rest or message
    return field, message


def _path(violation: Any) -> str:
    if violation.field is None:
        return ""
    parts = []
    for element in violation.field.elements:
        name = element.field_name
        subscript = getattr(element, "subscript", None)
        if subscript is not None:
            name = f"{name}[{getattr(subscript, 'value', subscript)}]"
        parts.append(name)
    return ".".join(parts)
