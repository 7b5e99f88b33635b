"""What the person who starts the suite may set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from shared.config import Settings
from shared.dsn import address_flaw
from suite import addresses


def _host_and_port(address: str | None) -> str | None:
    if address is not None and not re.fullmatch(r"\S*:\d{1,5}", address):
        raise PydanticCustomError("address", "it must be a host and a port, as in 127.0.0.1:6001")
    return address


def _postgresql(url: SecretStr | None) -> SecretStr | None:
    if url and not url.get_secret_value().startswith("postgresql://"):
        raise PydanticCustomError(
            "database", "it must be postgresql://<user>:<password>@<host>:<port>/<database>"
        )
    if url and (wrong := address_flaw(url.get_secret_value())):
        raise PydanticCustomError("database", "{wrong}", {"wrong": wrong})
    return url


# A port of 0 asks for any free one.
Listen = Annotated[str | None, AfterValidator(_host_and_port), Field(default=None)]


class SuiteSettings(Settings):
    """Everything has a default; an empty environment runs on loopback with a database of its own."""

    billing_data_dir: Path | None = Field(
        default=None, description="where data, secrets and runtime.json lie"
    )
    billing_backup_dir: Path | None = Field(default=None, description="where backups are kept")
    billing_postgres_port: int | None = Field(default=None, ge=0, le=65535)
    database_url: Annotated[SecretStr | None, AfterValidator(_postgresql)] = Field(
        default=None, description="administrator's; no embedded server then"
    )
    ledger_listen: Listen
    subscriptions_listen: Listen
    webhooks_listen: Listen
    scheduler_listen: Listen
    webhooks_http_listen: Listen
    sandbox_listen: Listen
    ledger_metrics_listen: Listen
    subscriptions_metrics_listen: Listen
    webhooks_metrics_listen: Listen
    scheduler_metrics_listen: Listen
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    billing_test_clock: Path | None = Field(default=None, description="file with an offset in seconds")

    def wished_addresses(self) -> dict[str, str | None]:
        """What the user asked for, by door."""
        return {name: getattr(self, f"{name}_listen") for name in addresses.DEFAULTS}
