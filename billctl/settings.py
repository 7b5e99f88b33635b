"""Where the rooms are and what opens their doors: the environment, or the suite that runs in this checkout."""

from dataclasses import dataclass

from pydantic import Field, SecretStr

from shared.config import Settings, load
from suite.files import DataFolder, Runtime
from suite.settings import SuiteSettings

ROOMS = ("ledger", "subscriptions", "webhooks", "scheduler")


class NotConnected(Exception):
    """Nothing says where the suite is; the message says what to set."""


class Environment(Settings):
    """What an operator's shell may say; anything it leaves out is the running suite's."""

    ledger_address: str = ""
    subscriptions_address: str = ""
    webhooks_address: str = ""
    scheduler_address: str = ""
    operator_secret: SecretStr = SecretStr("")
    readonly_database_url: SecretStr = SecretStr("")
    billctl_actor: str = Field(default="", description="who asks, where --actor is not given")


@dataclass(frozen=True)
class Connections:
    """Everything that is needed to reach a suite."""

    addresses: dict[str, str]
    operator_secret: SecretStr
    database_url: SecretStr

    @classmethod
    def find(cls) -> "Connections":
        """What the environment names, completed by the running suite; raises NotConnected naming what is missing."""
        told = load(Environment)
        runtime = Runtime.of_running_suite(DataFolder.choose(load(SuiteSettings).billing_data_dir))
        addresses = {room: getattr(told, f"{room}_address") for room in ROOMS}
        secret, url = told.operator_secret, told.readonly_database_url
        if runtime is not None:
            addresses = {room: address or runtime.addresses[room] for room, address in addresses.items()}
            secret = secret if secret.get_secret_value() else SecretStr(runtime.secrets["operator_secret"])
            url = url if url.get_secret_value() else SecretStr(runtime.database.urls["billing_readonly"])
        missing = [f"{room.upper()}_ADDRESS" for room, address in addresses.items() if not address]
        missing += [] if secret.get_secret_value() else ["OPERATOR_SECRET"]
        missing += [] if url.get_secret_value() else ["READONLY_DATABASE_URL"]
        if missing:
            raise NotConnected(
                "no suite runs in this checkout, so say where one is: set " + ", ".join(missing)
            )
        key = secret.get_secret_value()
        if not (key.isascii() and key.isprintable()):
            raise NotConnected("OPERATOR_SECRET holds what no key holds, such as a line's end: set it anew")
        return cls(addresses, secret, url)
