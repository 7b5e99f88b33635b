"""Every setting of the sandbox."""

from pathlib import Path

from pydantic import AnyHttpUrl, Field, SecretStr

from shared.config import Settings


class SandboxSettings(Settings):
    """What the sandbox reads from the environment."""

    sandbox_listen: str = Field(default="127.0.0.1:8090", pattern=r"^\S+:\d+$", description="bind address")
    sandbox_state: Path | None = Field(
        default=None, description="journal that survives a restart; memory only when unset"
    )
    sandbox_webhook_url: AnyHttpUrl | None = Field(
        default=None, description="where events go; nowhere when unset"
    )
    sandbox_retry_scale: float = Field(
        default=1.0, gt=0, description="multiplies the steps of the retry ladder"
    )
    razorpay_key_id: str = Field(min_length=1, description="user name of the REST API")
    razorpay_key_secret: SecretStr = Field(min_length=1, description="password; also signs checkouts")
    razorpay_webhook_secret: SecretStr = Field(min_length=1, description="signs webhooks")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
