"""Every setting of the ledger."""

from pydantic import Field, SecretStr

from shared.config import MetricsListen, RoomSettings


class LedgerSettings(RoomSettings):
    """Read once at the start; `python -m services.ledger` names whatever is missing or wrong."""

    ledger_listen: str = Field(
        default="127.0.0.1:50051", pattern=r"^.+:\d+$", description="host:port to serve on"
    )
    ledger_metrics_listen: MetricsListen = ""
    ledger_database_url: SecretStr = Field(description="how ledger_rw connects")
    ledger_lanes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="write connections; more of them make smaller batches, which pays for large batches over many tenants",
    )
    ledger_waiting_max: int = Field(default=20_000, ge=1, description="operations that may wait on one lane")
    ledger_waiting_per_tenant_max: int = Field(
        default=10_000, ge=1, description="of these, one tenant's share"
    )
    ledger_grace_retention_days: int = Field(
        default=30, ge=1, le=3650, description="how long a grace period is kept after its end"
    )
    ledger_rate_limit_retention_days: int = Field(
        default=1,
        ge=1,
        le=365,
        description="how long an operator's rate limit is kept after it limited anybody",
    )
    ledger_pool_size: int = Field(default=8, ge=1, le=64, description="read connections")
