"""Every setting of the subscriptions room."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from services.subscriptions.rules import gstin
from services.subscriptions.rules.policy import LADDER, Policy, Retention, Step, Supplier
from shared.config import MetricsListen, RoomSettings


class SubscriptionsSettings(RoomSettings):
    """Read once at the start; `python -m services.subscriptions` names whatever is missing or wrong."""

    subscriptions_listen: str = Field(
        default="127.0.0.1:50052", pattern=r"^.+:\d+$", description="host:port to serve on"
    )
    subscriptions_metrics_listen: MetricsListen = ""
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
    billing_upgrade_refund: Literal["prorated", "none"] = Field(
        default="prorated", description="what an upgrade gives back of the old period's money"
    )
    billing_upgrade_credits: Literal["delta_prorated", "none"] = Field(
        default="delta_prorated", description="what an upgrade takes back of the old period's credits"
    )
    billing_supplier_name: str = Field(
        default="", validate_default=True, description="who sells, on tax invoices"
    )
    billing_supplier_gstin: str = Field(default="", validate_default=True, description="the seller's GSTIN")
    billing_supplier_state_code: str = Field(
        default="", pattern=r"^([0-9]{2})?$", description="its GST state"
    )
    billing_supplier_address: str = Field(
        default="", validate_default=True, description="its address, in one line"
    )

    # Without it notices to tenants are recorded and stay owed. Who knows the URL could pass for us, hence the secret.
    billing_notification_webhook_url: SecretStr = Field(
        default=SecretStr(""), description="where notices to tenants are posted"
    )
    billing_notification_secret: SecretStr = Field(default=SecretStr(""), description="signs these posts")
    billing_past_due_days: str = Field(
        default="1,3,7,14",
        pattern=r"^[0-9]{1,3},[0-9]{1,3},[0-9]{1,3},[0-9]{1,3}$",
        description="days after a failed charge: three reminders, then free",
    )

    billing_verify_calls: int = Field(
        default=100, ge=1, description="VerifyPayment: calls for one tenant in 15 minutes"
    )
    billing_verify_failures: int = Field(
        default=5, ge=1, description="VerifyPayment: wrong signatures of one tenant in 15 minutes"
    )

    subscriptions_payment_failures_alert_pct: int = Field(
        default=10, ge=1, le=100, description="wake somebody when more of an hour's charges fail"
    )
    subscriptions_payment_failures_alert_min: int = Field(
        default=5, ge=1, description="and at least so many: one of three at night wakes nobody"
    )

    # More than a night or two without the job, and than it takes to restore a backup.
    subscriptions_sync_payments_days: int = Field(
        default=7, ge=1, le=90, description="SyncWithProvider: how many days of payments it goes through"
    )

    subscriptions_task_retention_days: int = Field(
        default=90, ge=7, le=3650, description="how long tasks are kept that are done"
    )
    # A repeat that comes later is a new call.
    subscriptions_idempotency_key_retention_days: int = Field(
        default=90, ge=7, le=3650, description="how long first answers are kept"
    )
    subscriptions_signature_failure_retention_days: int = Field(
        default=90, ge=1, le=3650, description="how long refused signatures of this room are kept"
    )

    @field_validator("billing_supplier_name", "billing_supplier_gstin", "billing_supplier_address")
    @classmethod
    def _is_known_where_money_is_real(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("razorpay_mode") == "live":
            raise ValueError("must be set where RAZORPAY_MODE is live: tax invoices carry it")
        return value

    @field_validator("billing_supplier_gstin")
    @classmethod
    def _can_exist(cls, value: str) -> str:
        if value and (flaw := gstin.flaw(value)):
            raise ValueError(flaw)
        return value

    @field_validator("billing_supplier_state_code")
    @classmethod
    def _is_the_state_of_the_registration(cls, code: str, info: ValidationInfo) -> str:
        registered = info.data.get("billing_supplier_gstin", "")
        if code and code not in gstin.STATES:
            raise ValueError("is no GST state: 29 is Karnataka")
        if code and registered and code != gstin.state_of(registered):
            raise ValueError("is not the state in which BILLING_SUPPLIER_GSTIN is registered")
        return code

    @field_validator("billing_notification_webhook_url")
    @classmethod
    def _is_web_address(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not url.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must be an http:// or https:// address, or empty")
        return url

    @field_validator("billing_past_due_days")
    @classmethod
    def _is_ascending(cls, days: str) -> str:
        numbers = [int(day) for day in days.split(",")]
        if numbers != sorted(set(numbers)):
            raise ValueError("must be four days, each later than the one before")
        return days

    @property
    def policy(self) -> Policy:
        """What this deployment decided."""
        return Policy(
            upgrade_refund=self.billing_upgrade_refund,
            upgrade_credits=self.billing_upgrade_credits,
            verify_calls=self.billing_verify_calls,
            verify_failures=self.billing_verify_failures,
            failures_alert_pct=self.subscriptions_payment_failures_alert_pct,
            failures_alert_min=self.subscriptions_payment_failures_alert_min,
            payments_compared=timedelta(days=self.subscriptions_sync_payments_days),
            retention=Retention(
                completed_tasks=timedelta(days=self.subscriptions_task_retention_days),
                idempotency_keys=timedelta(days=self.subscriptions_idempotency_key_retention_days),
                signature_failures=timedelta(days=self.subscriptions_signature_failure_retention_days),
            ),
            ladder=tuple(
                Step(int(day), step.kind)
                for day, step in zip(self.billing_past_due_days.split(","), LADDER, strict=True)
            ),
            supplier=Supplier(
                name=self.billing_supplier_name,
                gstin=self.billing_supplier_gstin,
                state_code=self.billing_supplier_state_code,
                address=self.billing_supplier_address,
            ),
        )
