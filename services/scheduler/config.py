"""Every setting of the scheduler."""

from datetime import timedelta

from pydantic import Field, SecretStr

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


# A dead owner's run is taken over after this; a living one renews it three times as often.
LEASE = timedelta(seconds=15)
RUNS_KEPT = timedelta(days=30)
