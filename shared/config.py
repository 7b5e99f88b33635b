"""Settings from the environment: read once, checked together, secrets never shown."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError


class Settings(BaseSettings):
    """Base of every settings class: a field `ledger_listen` is the variable LEDGER_LISTEN."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


def _fit_for_metadata(key: SecretStr) -> SecretStr:
    # gRPC would refuse every call with it, one by one and in words that name no setting.
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise PydanticCustomError("key", "it must be printable ASCII without blanks")
    return key


# Where Prometheus asks a room; nobody who is not inside should reach it. Empty: the room shows no numbers.
MetricsListen = Annotated[
    str, Field(pattern=r"^$|^.+:\d+$", description="host:port of GET /metrics; empty: none")
]
Key = Annotated[SecretStr, Field(min_length=16), AfterValidator(_fit_for_metadata)]


class RoomSettings(Settings):
    """What every room needs."""

    gateway_secret: Key = Field(description="key of internal services")
    operator_secret: Key = Field(description="key of operators: Admin services")
    room_secret: Key = Field(description="key of rooms among themselves")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    reflection: bool = Field(default=True, description="serve reflection to holders of any key")
    admin_calls_per_15_minutes: int = Field(
        default=100, ge=0, description="of one method from one address, at operators' doors; 0: no limit"
    )
    shed_after_ms: int = Field(default=1000, ge=50, description="refuse requests that waited longer")
    billing_test_clock: Path | None = Field(default=None, description="file with an offset in seconds")
    otel_exporter_otlp_endpoint: str = Field(
        default="", pattern=r"^$|^https?://\S+$", description="where traces are sent; empty: none are made"
    )

    @field_validator("operator_secret", "room_secret")
    @classmethod
    def _opens_no_other_door(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        for name in ("gateway_secret", "operator_secret"):
            if name != info.field_name and info.data.get(name) == key:
                raise PydanticCustomError(
                    "key", f"it is the same as {name.upper()}: each opens doors of its own"
                )
        return key


AnySettings = TypeVar("AnySettings", bound=Settings)


def load(settings: type[AnySettings], **overrides: Any) -> AnySettings:
    """The settings, or the end of the process with one message that names every missing or wrong variable."""
    try:
        return settings(**overrides)
    except ValidationError as error:
        sys.exit(explain(error))
    except SettingsError as error:
        found = re.search('field "([a-z0-9_]+)"', str(error))
        sys.exit(
            f"The settings are not complete:\n  {found[1].upper() if found else 'one'} is wrong: it is not JSON"
        )


def explain(error: ValidationError) -> str:
    """One line for each setting, with the fix and never the value."""
    lines = ["The settings are not complete:"]
    for problem in error.errors(include_input=False, include_url=False):
        variable, *within = (str(part) for part in problem["loc"] if part != "[key]")
        if problem["type"] == "extra_forbidden" and not re.fullmatch("[a-z_]{1,24}", within[-1]):
            within[-1] = "…"  # no misspelt name, perhaps a value that stands in the wrong place
        # What lies within a setting is no variable of its own, and nobody should look for one.
        place = f" ({'.'.join(within)})" if within else ""
        missing = problem["type"] == "missing"
        what = problem["msg"].removeprefix("Value error, ")
        lines.append(f"  {variable.upper()}{place} {'is not set' if missing else 'is wrong: ' + what}")
    lines.append("Set them in the environment and start again.")
    return "\n".join(lines)
