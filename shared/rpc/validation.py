"""Requests are checked against the constraints written in the contract, all fields at once."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shared import errors, sensitive

_validator = protovalidate.Validator()

_SUBSCRIPT_CHARACTERS_MAX = 40
# With whatever stands between digits, be it several blanks of three bytes each.
_MANY_DIGITS = re.compile(rb"[0-9](?:[^0-9A-Za-z]*[0-9]){12}")
_IDENTIFIER = re.compile(r"(^|_)(ids?|key|token|sha256|signature|reference)$")
# Whatever the name, these tell no secret; the last was masked by whoever took it in.
_TELLS_NOTHING = frozenset({"", "true", "false", sensitive.MASK})
_NEVER_KEPT = "holds a card number or a secret, which is never taken in: leave it out"


def check(request: Message) -> None:
    """Raises InvalidArgument naming every field that breaks its contract, that nothing could store or nobody may."""
    raw = request.SerializeToString()
    if unstorable := list(_unstorable(request, raw)):
        raise _refusal(unstorable)
    if (_MANY_DIGITS.search(raw) or _has_names(request.DESCRIPTOR)) and (
        forbidden := list(_forbidden(request, ""))
    ):
        raise _refusal(forbidden)
    try:
        _validator.validate(request)
    except protovalidate.ValidationError as error:
        raise _refusal([_describe(each.proto, request) for each in error.violations]) from None


def _refusal(violations: list[tuple[str, str]]) -> errors.InvalidArgument:
    # The sentence says it all as well: not every client shows the details of a status.
    sentence = "; ".join(f"{field} {what}" for field, what in violations[:5])
    return errors.InvalidArgument(sentence, violations=violations)


def _unstorable(request: Message, raw: bytes) -> Iterator[tuple[str, str]]:
    """Valid on the wire and beyond every database and calendar: NUL in text, moments outside the years 1 to 9999."""
    if b"\0" in raw or _has_moments(request.DESCRIPTOR):
        yield from _unstorable_in(request, "")


def _unstorable_in(message: Message, path: str) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        for name, each in _each(field, value, f"{path}{field.name}"):
            if isinstance(each, str):
                if "\0" in each:
                    yield name, "must not contain the character NUL"
            elif isinstance(each, Timestamp):
                try:
                    each.ToDatetime()
                except (ValueError, OverflowError):
                    yield name, "must be a moment of the years 1 to 9999"
            elif isinstance(each, Message):
                yield from _unstorable_in(each, f"{name}.")


def _forbidden(message: Message, path: str) -> Iterator[tuple[str, str]]:
    """Card data and secrets where people write what they like. Ids are left alone: many a tenant's is a number."""
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from _forbidden_in_map(value, name)
        else:
            for place, each in _each(field, value, name):
                if isinstance(each, Message):
                    yield from _forbidden(each, f"{place}.")
                elif (
                    isinstance(each, str)
                    and not _IDENTIFIER.search(field.name)
                    and sensitive.holds_card(each)
                ):
                    yield place, _NEVER_KEPT


def _forbidden_in_map(named: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    for key, content in named.items():
        if isinstance(key, str) and sensitive.holds_card(key):
            yield f"{path}[…]", _NEVER_KEPT
        elif isinstance(content, str) and _is_forbidden(str(key), content):
            yield f"{path}[{_short(str(key))}]", _NEVER_KEPT


def _is_forbidden(name: str, content: str) -> bool:
    return content not in _TELLS_NOTHING and (sensitive.holds_card(content) or sensitive.is_never_kept(name))


def _each(field: FieldDescriptor, value: Any, name: str) -> Iterable[tuple[str, Any]]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key in value:
            subscript = f"{name}[{_short(str(key))}]"
            yield subscript, key
            yield subscript, value[key]
    elif field.is_repeated:
        yield from ((f"{name}[{position}]", each) for position, each in enumerate(value))
    else:
        yield name, value


@cache
def _has_names(message: Descriptor, within: frozenset[Descriptor] = frozenset()) -> bool:
    """Whether callers name fields of their own in it, at any depth."""
    parts = [field.message_type for field in message.fields if field.message_type is not None]
    return any(
        part.GetOptions().map_entry or (part not in within and _has_names(part, within | {message}))
        for part in parts
    )


@cache
def _has_moments(message: Descriptor, within: frozenset[Descriptor] = frozenset()) -> bool:
    """Whether a timestamp can be in it, at any depth."""
    if message.full_name == Timestamp.DESCRIPTOR.full_name:
        return True
    parts = [field.message_type for field in message.fields if field.message_type is not None]
    return any(_has_moments(part, within | {message}) for part in parts if part not in within | {message})


def _describe(violation: Any, request: Message) -> tuple[str, str]:
    field, message = _path(violation), violation.message
    if (choice := request.DESCRIPTOR.oneofs_by_name.get(field)) is not None:
        # The group's own name is not on the wire: whoever gave none of its fields would search for it in vain.
        return field, f"is missing: give one of {', '.join(each.name for each in choice.fields)}"
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
            name = f"{name}[{_short(str(getattr(subscript, 'value', subscript)))}]"
        parts.append(name)
    return ".".join(parts)


def _short(subscript: str) -> str:
    if sensitive.holds_card(subscript.replace("\0", "")):
        return "…"
    if len(subscript) <= _SUBSCRIPT_CHARACTERS_MAX:
        return subscript
    return subscript[: _SUBSCRIPT_CHARACTERS_MAX - 1] + "…"
