"""Every setting of the room."""

import json
from collections.abc import Mapping
from datetime import time
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import NoDecode

from services.webhooks.rules import addresses
from services.webhooks.rules.addresses import Network
from services.webhooks.rules.delivery import Patience
from services.webhooks.rules.health import BusinessHours
from services.webhooks.rules.inbox import Endpoint
from services.webhooks.rules.providers import PROVIDERS
from shared.config import MetricsListen, RoomSettings

Mode = Literal["test", "live"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Address = Annotated[str, StringConstraints(pattern=r"^\S*:[0-9]{1,5}$")]
_SECRET_LENGTH_MIN = 8


def _signing(secret: SecretStr) -> SecretStr:
    # Blanks around a pasted secret are a common reason for signatures that never match; and blanks alone would leave
    # the empty secret, with which anybody can sign.
    plain = secret.get_secret_value().strip()
    if len(plain) < _SECRET_LENGTH_MIN:
        raise ValueError(f"at least {_SECRET_LENGTH_MIN} characters, not counting blanks around them")
    return SecretStr(plain)


SigningSecret = Annotated[SecretStr, AfterValidator(_signing)]


class ExtraEndpoint(BaseModel):
    """One more address that a provider posts to, for another account or mode, with its own secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    provider: str = "razorpay"
    account_id: Name
    mode: Mode
    secrets: tuple[SigningSecret, ...] = Field(
        description="the first signs new events, the others were good before it"
    )

    @field_validator("provider")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PROVIDERS:
            raise ValueError(f"no such provider; there is {', '.join(PROVIDERS)}")
        return value

    @field_validator("secrets")
    @classmethod
    def _some_and_different(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not value:
            raise ValueError("there is none, so that nobody could sign")
        if len(set(_plain(value))) < len(value):
            raise ValueError("one of them is there twice; give each once, the current one first")
        return value


class WebhooksSettings(RoomSettings):
    """Read once by `__main__`."""

    webhooks_listen: Address = Field(default="127.0.0.1:50053", description="gRPC")
    webhooks_http_listen: Address = Field(default="127.0.0.1:8080", description="what providers reach")
    webhooks_metrics_listen: MetricsListen = ""
    webhooks_database_url: SecretStr
    subscriptions_address: Address = Field(default="127.0.0.1:50052")

    razorpay_webhook_secret: SigningSecret
    razorpay_webhook_secret_previous: SigningSecret | None = Field(
        default=None, description="keep the old secret here for 8 days after a rotation"
    )
    razorpay_mode: Mode = Field(default="test", description="of /webhooks/razorpay")
    razorpay_account_id: Name = Field(default="default", description="of /webhooks/razorpay")
    webhooks_endpoints: Annotated[dict[Name, ExtraEndpoint], NoDecode] = Field(
        default_factory=dict,
        description="more addresses by the last part of their path, as JSON:"
        ' {"shop-live": {"account_id": "acc_x", "mode": "live", "secrets": ["…"]}} is /webhooks/razorpay/shop-live',
    )

    webhooks_body_bytes_max: int = Field(default=1 << 20, ge=1024)
    webhooks_receive_seconds: float = Field(default=5.0, gt=0, description="for one whole request")
    webhooks_connections_max: int = Field(
        default=2048, ge=16, description="beyond it, whoever has kept us waiting longest is dropped"
    )
    webhooks_trusted_proxies: str = Field(
        default="",
        description="comma-separated addresses and networks whose X-Forwarded-For is believed; default none",
    )
    webhooks_unsigned_per_15_minutes: int = Field(
        default=5, ge=0, description="deliveries without a valid signature from one address; 0: no limit"
    )

    webhooks_delivery_concurrency: int = Field(default=4, ge=1, le=64)
    webhooks_delivery_poll_seconds: float = Field(default=1.0, gt=0)
    webhooks_delivery_attempts: int = Field(default=10, ge=1)
    webhooks_delivery_backoff_seconds: float = Field(default=2.0, gt=0)
    webhooks_delivery_lease_seconds: float = Field(default=30.0, gt=0)
    webhooks_delivery_call_seconds: float = Field(default=10.0, gt=0, validate_default=True)

    webhooks_silence_minutes: int = Field(default=30, ge=1)
    webhooks_business_opens: time = Field(default=time(10), description="Indian time")
    webhooks_business_closes: time = Field(default=time(19), description="Indian time")
    webhooks_business_days: frozenset[int] = Field(
        default=frozenset(range(5)), description="JSON list, Monday is 0"
    )
    webhooks_signature_spike: int = Field(default=10, ge=1, description="failures in an hour")
    webhooks_signature_burst: int = Field(default=6, ge=1, description="failures in five minutes")
    webhooks_dead_letters_alert: int = Field(default=10, ge=0, description="warn beyond so many")

    webhooks_body_retention_days: int = Field(default=90, ge=8, description="bodies hold personal data")
    webhooks_event_retention_days: int = Field(
        default=730, ge=30, description="until then an old signed body is known as a duplicate"
    )
    webhooks_admin_request_retention_days: int = Field(default=30, ge=1)
    webhooks_signature_failure_retention_days: int = Field(default=90, ge=1, description="of this room's own")

    @field_validator("webhooks_business_closes")
    @classmethod
    def _after_opening(cls, closes: time, info: ValidationInfo) -> time:
        # Else there would be no business hours, and nobody would ever hear of a silence.
        opens = info.data.get("webhooks_business_opens")
        if opens is not None and closes <= opens:
            raise ValueError("must be later on the same day than WEBHOOKS_BUSINESS_OPENS")
        return closes

    @field_validator("webhooks_business_days")
    @classmethod
    def _weekdays(cls, days: frozenset[int]) -> frozenset[int]:
        if not days <= set(range(7)):
            raise ValueError("must be numbers from 0, Monday, to 6, Sunday")
        return days

    @field_validator("webhooks_trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        addresses.networks(value)
        return value

    @field_validator("webhooks_delivery_call_seconds")
    @classmethod
    def _ends_before_the_lease(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds >= info.data.get("webhooks_delivery_lease_seconds", seconds + 1):
            raise ValueError(
                "must be less than WEBHOOKS_DELIVERY_LEASE_SECONDS, or a slow answer is written down by nobody"
            )
        return seconds

    @field_validator("razorpay_webhook_secret_previous", mode="before")
    @classmethod
    def _unset_when_empty(cls, value: object) -> object:
        return value or None

    @field_validator("razorpay_webhook_secret_previous")
    @classmethod
    def _not_the_current(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and value == info.data.get("razorpay_webhook_secret"):
            raise ValueError(
                "it is RAZORPAY_WEBHOOK_SECRET itself; give the one that was good before, or unset it"
            )
        return value

    @field_validator("webhooks_endpoints", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value, object_pairs_hook=_once) if value.strip() else {}
        except json.JSONDecodeError:
            raise ValueError("it is not JSON") from None

    @field_validator("webhooks_endpoints")
    @classmethod
    def _apart(cls, value: dict[str, ExtraEndpoint], info: ValidationInfo) -> dict[str, ExtraEndpoint]:
        for one, other in combinations(_endpoints(info.data, value), 2):
            if one.belongs_to != other.belongs_to and set(one.secrets) & set(other.secrets):
                raise ValueError(
                    f"{one.address} and {other.address} have a secret in common, so that what is signed for the one"
                    " is good at the other; give each its own"
                )
        return value

    def endpoints(self) -> list[Endpoint]:
        """Every address that a provider may post to."""
        return _endpoints(dict(self), self.webhooks_endpoints)

    def trusted_proxies(self) -> tuple[Network, ...]:
        """Whose word on where a request comes from is believed."""
        return addresses.networks(self.webhooks_trusted_proxies)

    def patience(self) -> Patience:
        """How long and how often an event is tried."""
        return Patience(
            attempts_max=self.webhooks_delivery_attempts,
            base_seconds=self.webhooks_delivery_backoff_seconds,
            lease_seconds=self.webhooks_delivery_lease_seconds,
            call_seconds=self.webhooks_delivery_call_seconds,
        )

    def business_hours(self) -> BusinessHours:
        """When events are expected."""
        return BusinessHours(
            self.webhooks_business_opens, self.webhooks_business_closes, self.webhooks_business_days
        )


def _endpoints(values: Mapping[str, Any], more: Mapping[str, ExtraEndpoint]) -> list[Endpoint]:
    """Also while the settings are being checked, when some may be missing."""
    current, previous = (values.get(f"razorpay_webhook_secret{which}") for which in ("", "_previous"))
    known = tuple(secret for secret in (current, previous) if secret is not None)
    found = [
        Endpoint(extra.provider, path, extra.account_id, extra.mode, _plain(extra.secrets))
        for path, extra in more.items()
    ]
    if not known or not {"razorpay_account_id", "razorpay_mode"} <= values.keys():
        return found
    first = Endpoint("razorpay", "", values["razorpay_account_id"], values["razorpay_mode"], _plain(known))
    return [first, *found]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON's last word wins: the first endpoint of that name would be gone without a sound.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _plain(secrets: tuple[SecretStr, ...]) -> tuple[bytes, ...]:
    return tuple(secret.get_secret_value().encode() for secret in secrets)
