"""What the person who starts the suite may set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from shared.config import Settings
from suite import addresses

# A port of 0 asks for any free one.
Listen = Annotated[str | None, Field(default=None, pattern=r"^\S+:\d{1,5}$")]


class SuiteSettings(Settings):
    """Everything has a default; an empty environment runs on loopback with a database of its own."""

    billing_data_dir: Path | None = Field(
        default=None, description="where data, secrets and runtime.json lie"
    )
    billing_postgres_port: int | None = Field(default=None, ge=0, le=65535)
    database_url: SecretStr | None = Field(
        default=None, description="administrator's; no embedded server then"
    )
    ledger_listen: Listen
    subscriptions_listen: Listen
    webhooks_listen: Listen
    scheduler_listen: Listen
    webhooks_http_listen: Listen
    sandbox_listen: Listen
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    billing_test_clock: Path | None = Field(default=None, description="file with an offset in seconds")

    def wished_addresses(self) -> dict[str, str | None]:
        """What the user asked for, by door."""
        return {name: getattr(self, f"{name}_listen") for name in addresses.DEFAULTS}
