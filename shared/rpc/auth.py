"""Who may call what: one key per kind of caller, compared in constant time."""

import hmac
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from pydantic import SecretStr

from shared import errors


class Caller(Enum):
    """Whose key it was."""

    SERVICE = "service"
    OPERATOR = "operator"
    ROOM = "room"


class Audience(Enum):
    """Who a service is for."""

    PRODUCT = frozenset({Caller.SERVICE, Caller.OPERATOR, Caller.ROOM})
    OPERATOR = frozenset({Caller.OPERATOR})
    ROOM = frozenset({Caller.ROOM})


@dataclass(frozen=True)
class Keyring:
    """The keys of one deployment."""

    service: SecretStr
    operator: SecretStr
    room: SecretStr

    @cached_property
    def _secrets(self) -> tuple[tuple[Caller, bytes], ...]:
        held = ((Caller.SERVICE, self.service), (Caller.OPERATOR, self.operator), (Caller.ROOM, self.room))
        return tuple((caller, secret.get_secret_value().encode()) for caller, secret in held)

    def caller(self, key: str | bytes | None) -> Caller:
        """Whose key this is, or Unauthenticated. Every key is compared, so time tells nothing."""
        given = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key or b""
        found = None
        for caller, secret in self._secrets:
            if hmac.compare_digest(given, secret):
                found = caller
        if found is None:
            raise errors.Unauthenticated("metadata x-gateway-key is missing or wrong")
        return found


def admit(caller: Caller, audience: Audience | None, service: str) -> None:
    """Refuses a caller that the service is not for. `audience` None: any key will do (reflection)."""
    if audience is not None and caller not in audience.value:
        raise errors.PermissionDenied(
            f"{service} is not for this key", service=service, audience=audience.name.lower()
        )
