"""Every setting of the scheduler."""

from datetime import timedelta

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError

from services.scheduler.rules import Policy
from shared.config import MetricsListen, RoomSettings


class SchedulerSettings(RoomSettings):
    """What the scheduler needs beside what every room needs."""

    scheduler_listen: str = Field(default="127.0.0.1:50054", description="where the door opens")
    scheduler_metrics_listen: MetricsListen = ""
    scheduler_database_url: SecretStr = Field(description="how scheduler_rw connects")
    ledger_address: str = Field(default="127.0.0.1:50051", description="where the ledger answers")
    subscriptions_address: str = Field(default="127.0.0.1:50052", description="where subscriptions answer")
    webhooks_address: str = Field(default="127.0.0.1:50053", description="where webhooks answer gRPC")
    # Secret: whoever knows the URL can post into the channel.
    billing_alert_webhook_url: SecretStr | None = Field(default=None, description="Slack-compatible webhook")
    billing_alert_messages_per_minute: int = Field(
        default=20,
        ge=1,
        le=600,
        description="to the webhook; the last of a minute tells of all that are left",
    )

    scheduler_lease_seconds: float = Field(
        default=15, ge=1, le=300, description="a dead owner's run is taken over after this"
    )
    scheduler_run_retention_days: int = Field(default=30, ge=1, le=3650, description="ended runs")
    scheduler_alert_retention_days: int = Field(
        default=90,
        ge=1,
        le=3650,
        description="alerts that are over; an event reported again later is told again",
    )
    scheduler_operator_request_retention_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="until then a repeated key answers what its first call answered",
    )

    @field_validator("billing_alert_webhook_url")
    @classmethod
    def _of_the_web(cls, url: SecretStr | None) -> SecretStr | None:
        # Compose files pass a variable that is not set as an empty one.
        if url is None or not url.get_secret_value():
            return None
        if not url.get_secret_value().startswith(("https://", "http://")):
            raise PydanticCustomError("url", "it must begin with https:// or http://")
        return url

    @property
    def policy(self) -> Policy:
        """What the actions go by."""
        return Policy(
            lease=timedelta(seconds=self.scheduler_lease_seconds),
            runs_kept=timedelta(days=self.scheduler_run_retention_days),
            alerts_kept=timedelta(days=self.scheduler_alert_retention_days),
            requests_kept=timedelta(days=self.scheduler_operator_request_retention_days),
            messages_per_minute=self.billing_alert_messages_per_minute,
        )
