"""Every setting of the room."""

from datetime import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator

from services.webhooks.rules.delivery import Patience
from services.webhooks.rules.health import BusinessHours
from services.webhooks.rules.inbox import Endpoint
from services.webhooks.rules.providers import PROVIDERS
from shared.config import RoomSettings

Mode = Literal["test", "live"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Address = Annotated[str, StringConstraints(pattern=r"^\S*:[0-9]{1,5}$")]


class ExtraEndpoint(BaseModel):
    """One more address that a provider posts to, for another account or mode, with its own secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    provider: str = "razorpay"
    account_id: Name
    mode: Mode
    secrets: tuple[Annotated[SecretStr, Field(min_length=8)], ...] = Field(
        min_length=1, description="the first signs new events, the others were good before it"
    )

    @field_validator("provider")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PROVIDERS:
            raise ValueError(f"no such provider; there is {', '.join(PROVIDERS)}")
        return value


class WebhooksSettings(RoomSettings):
    """Read once by `__main__`."""

    webhooks_listen: Address = Field(default="127.0.0.1:50053", description="gRPC")
    webhooks_http_listen: Address = Field(default="127.0.0.1:8080", description="what providers reach")
    webhooks_database_url: SecretStr
    subscriptions_address: Address = Field(default="127.0.0.1:50052")

    razorpay_webhook_secret: SecretStr = Field(min_length=8)
    razorpay_webhook_secret_previous: SecretStr | None = Field(
        default=None, description="keep the old secret here for 8 days after a rotation"
    )
    razorpay_mode: Mode = Field(default="test", description="of /webhooks/razorpay")
    razorpay_account_id: Name = Field(default="default", description="of /webhooks/razorpay")
    webhooks_endpoints: dict[Name, ExtraEndpoint] = Field(
        default_factory=dict,
        description="more addresses by the last part of their path, as JSON:"
        ' {"shop-live": {"account_id": "acc_x", "mode": "live", "secrets": ["…"]}} is /webhooks/razorpay/shop-live',
    )

    webhooks_body_bytes_max: int = Field(default=1 << 20, ge=1024)
    webhooks_receive_seconds: float = Field(default=5.0, gt=0, description="for one whole request")
    webhooks_connections_max: int = Field(default=2048, ge=16)

    webhooks_delivery_concurrency: int = Field(default=8, ge=1, le=64)
    webhooks_delivery_poll_seconds: float = Field(default=1.0, gt=0)
    webhooks_delivery_attempts: int = Field(default=10, ge=1)
    webhooks_delivery_backoff_seconds: float = Field(default=2.0, gt=0)
    webhooks_delivery_lease_seconds: float = Field(default=30.0, gt=0)
    webhooks_delivery_call_seconds: float = Field(default=10.0, gt=0)

    webhooks_silence_minutes: int = Field(default=30, ge=1)
    webhooks_business_opens: time = Field(default=time(10), description="Indian time")
    webhooks_business_closes: time = Field(default=time(19), description="Indian time")
    webhooks_business_days: frozenset[int] = Field(
        default=frozenset(range(5)), description="JSON list, Monday is 0"
    )
    webhooks_signature_spike: int = Field(default=10, ge=1, description="failures in an hour")
    webhooks_dead_letters_alert: int = Field(default=10, ge=0, description="warn beyond so many")

    webhooks_body_retention_days: int = Field(default=90, ge=8, description="bodies hold personal data")
    webhooks_event_retention_days: int = Field(
        default=730, ge=30, description="until then an old signed body is known as a duplicate"
    )
    webhooks_admin_request_retention_days: int = Field(default=30, ge=1)

    @field_validator("razorpay_webhook_secret_previous", mode="before")
    @classmethod
    def _unset_when_empty(cls, value: object) -> object:
        return value or None

    def endpoints(self) -> list[Endpoint]:
        """Every address that a provider may post to."""
        current, previous = self.razorpay_webhook_secret, self.razorpay_webhook_secret_previous
        first = Endpoint(
            provider="razorpay",
            path="",
            account_id=self.razorpay_account_id,
            mode=self.razorpay_mode,
            secrets=_plain((current,) if previous is None else (current, previous)),
        )
        more = [
            Endpoint(extra.provider, path, extra.account_id, extra.mode, _plain(extra.secrets))
            for path, extra in self.webhooks_endpoints.items()
        ]
        return [first, *more]

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


def _plain(secrets: tuple[SecretStr, ...]) -> tuple[bytes, ...]:
    # Blanks at the end of a variable are the commonest reason for signatures that never match.
    return tuple(secret.get_secret_value().strip().encode() for secret in secrets)
