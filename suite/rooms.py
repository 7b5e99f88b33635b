"""The programs of the suite and what each is told: nobody gets another's database or a key it has no use for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from suite import addresses
from suite.files import Secrets

# Settings of the person who starts the suite; a program gets its own (SANDBOX_…) and those that all read.
PASSED_TO_ALL = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("BILLING_DATA_DIR", "BILLING_TEST_CLOCK", "LOG_LEVEL", "REFLECTION"),
    "ADMIN_CALLS_PER_15_MINUTES",
)
# Where traces go, and how: what OpenTelemetry reads by itself.
TRACES = "OTEL_"
ALERTS = (
    *("BILLING_ALERT_WEBHOOK_URL", "BILLING_ALERT_MESSAGES_PER_MINUTE"),
    "BILLING_NOTIFICATION_WEBHOOK_URL",
)
# What a deployment decides for itself, and how its notices are signed.
OF_SUBSCRIPTIONS = (
    "BILLING_UPGRADE_",
    "BILLING_SUPPLIER_",
    "BILLING_PAST_DUE_",
    "BILLING_NOTIFICATION_",
    "BILLING_VERIFY_",
)

# Who sells to the sandbox's customers, unless the person who starts the suite says otherwise.
SAMPLE_SELLER = {
    "BILLING_SUPPLIER_NAME": "Example Software Private Limited",
    "BILLING_SUPPLIER_GSTIN": "29AABCU9603R1ZJ",
    "BILLING_SUPPLIER_ADDRESS": "1 MG Road, Bengaluru 560001",
}


@dataclass(frozen=True)
class Program:
    """One process: `python -m <arguments>`."""

    name: str
    arguments: tuple[str, ...]
    is_room: bool = True
    http_door: str | None = None  # its /healthz must answer
    knows_provider: bool = False


PROGRAMS = (
    Program("sandbox", ("sandbox",), is_room=False, http_door="sandbox", knows_provider=True),
    Program("ledger", ("services.ledger",)),
    Program("subscriptions", ("services.subscriptions",), knows_provider=True),
    Program("webhooks", ("services.webhooks",), http_door="webhooks_http", knows_provider=True),
    Program("scheduler", ("services.scheduler",)),
)
ROOMS = tuple(program.name for program in PROGRAMS if program.is_room)

# Runs once, after the migrations and before the rooms.
CATALOGUE = Program("subscriptions", ("services.subscriptions", "apply-catalog"), knows_provider=True)


@dataclass(frozen=True)
class World:
    """Everything that the programs' environments are made from."""

    listen: Mapping[str, str]
    database_urls: Mapping[str, str]
    secrets: Secrets
    log_level: str
    data_dir: Path

    def environment(self, program: Program) -> dict[str, str]:
        """The whole environment of a program: what is not named here does not reach it."""
        own = (
            f"{program.name.upper()}_",
            *((TRACES,) if program.is_room else ()),
            *(("RAZORPAY_",) if program.knows_provider else ()),
        )
        own += OF_SUBSCRIPTIONS if program.name == "subscriptions" else ()
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED_TO_ALL or name in ALERTS or name.startswith(own)
        }
        told = {"PYTHONUNBUFFERED": "1", "LOG_LEVEL": self.log_level}
        if program.is_room:
            told |= self._room(program)
        else:
            told |= {"SANDBOX_LISTEN": self.listen["sandbox"]}
            # What was bought at the sandbox is still there after a restart, as at a real provider.
            told["SANDBOX_STATE"] = os.environ.get("SANDBOX_STATE", str(self.data_dir / "sandbox.journal"))
            ingress = f"{self.url('webhooks_http')}/webhooks/razorpay"
            told["SANDBOX_WEBHOOK_URL"] = os.environ.get("SANDBOX_WEBHOOK_URL", ingress)
        if program.knows_provider:
            told |= self._provider()
        return passed | told

    def _room(self, program: Program) -> dict[str, str]:
        upper = program.name.upper()
        told = {f"{room.upper()}_ADDRESS": addresses.reachable(self.listen[room]) for room in ROOMS}
        told |= {
            f"{upper}_LISTEN": self.listen[program.name],
            f"{upper}_METRICS_LISTEN": self.listen[f"{program.name}_metrics"],
            f"{upper}_DATABASE_URL": self.database_urls[f"{program.name}_rw"],
            "GATEWAY_SECRET": self.secrets.gateway_secret,
            "OPERATOR_SECRET": self.secrets.operator_secret,
            "ROOM_SECRET": self.secrets.room_secret,
        }
        if program.name == "subscriptions" and not any(name in os.environ for name in SAMPLE_SELLER):
            told |= SAMPLE_SELLER
        if program.name == "webhooks":
            told["WEBHOOKS_HTTP_LISTEN"] = self.listen["webhooks_http"]
        return told

    def _provider(self) -> dict[str, str]:
        return {
            "RAZORPAY_KEY_ID": self.secrets.razorpay_key_id,
            "RAZORPAY_KEY_SECRET": self.secrets.razorpay_key_secret,
            "RAZORPAY_WEBHOOK_SECRET": self.secrets.razorpay_webhook_secret,
            "RAZORPAY_API_URL": self.url("sandbox"),
            "RAZORPAY_MODE": "test",
        }

    def url(self, door: str) -> str:
        return f"http://{addresses.reachable(self.listen[door])}"
