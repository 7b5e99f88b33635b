"""Every setting of the subscriptions room."""

from typing import Literal

from pydantic import Field, SecretStr

from shared.config import RoomSettings


class SubscriptionsSettings(RoomSettings):
    """Read once at the start; `python -m services.subscriptions` names whatever is missing or wrong."""

    subscriptions_listen: str = Field(
        default="127.0.0.1:50052", pattern=r"^.+:\d+$", description="host:port to serve on"
    )
    subscriptions_database_url: SecretStr = Field(description="how subscriptions_rw connects")
    subscriptions_pool_size: int = Field(default=8, ge=1, le=64, description="database connections")
    ledger_address: str = Field(default="127.0.0.1:50051", description="where the ledger answers")
    # Without keys everything works but what asks the provider: that refuses with PROVIDER_NOT_CONFIGURED.
    razorpay_key_id: str = Field(default="", description="public half of the API key")
    razorpay_key_secret: SecretStr = Field(default=SecretStr(""), description="secret half; signs checkouts")
    razorpay_api_url: str = Field(default="https://api.razorpay.com", pattern=r"^https?://[^/]+/?$")
    razorpay_mode: Literal["test", "live"] = Field(
        default="test", description="events of the other are ignored"
    )
