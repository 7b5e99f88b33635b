"""Tells a repeated request from another one under the same key."""

from collections.abc import Mapping
from typing import Any

from services.subscriptions.errors import IdempotencyKeyReused


def assert_same(method: str, first: Mapping[str, Any], repeated: Mapping[str, Any]) -> None:
    """Returns if both ask for the same; otherwise refuses, naming the first field that differs."""
    for field in [*first, *(name for name in repeated if name not in first)]:
        if first.get(field) != repeated.get(field):
            raise IdempotencyKeyReused(
                f"this idempotency key was used before with another {field}: use a new key for a new intention",
                field=field,
                method=method,
            )
