"""What the launcher shows a person: every process's lines with its name, and a welcome."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from suite.files import Runtime

COLOURS = {
    "suite": "1",
    "sandbox": "35",
    "ledger": "32",
    "subscriptions": "36",
    "webhooks": "33",
    "scheduler": "34",
    "catalogue": "36",
}
WIDTH = max(map(len, COLOURS))


def fail(message: str) -> NoReturn:
    """Ends a command with a sentence for a person."""
    print(message, file=sys.stderr)
    raise typer.Exit(1)


class Console:
    """Standard output, coloured when a person looks at it."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, name: str, line: str) -> None:
        """One line under a name."""
        label = f"{name:<{WIDTH}} |"
        if self._colour:
            label = f"\x1b[{COLOURS.get(name, '0')}m{label}\x1b[0m"
        self._print(f"{label} {line}")

    def welcome(self, runtime: Runtime) -> None:
        """Addresses, and three commands to try."""
        database = runtime.database
        places = {f"{room} (gRPC)": address for room, address in runtime.addresses.items()}
        places |= {
            "webhooks (HTTP)": f"{runtime.webhooks_http_url}/webhooks/razorpay",
            "razorpay sandbox": runtime.sandbox_url,
            "postgres": f"{database.host}:{database.port}/{database.name}   (make psql)",
        }
        places |= {f"{room} (metrics)": url for room, url in runtime.metrics_urls.items()}
        lines = ["", "The suite is running. Ctrl-C stops it.", ""]
        lines += [f"  {name:<23} {place}" for name, place in places.items()]
        lines += [
            "",
            "Three things to try in another terminal: a room's methods, a new tenant, its balance.",
            "",
        ]
        lines += _commands(runtime)
        lines += [f"  Everything a program needs to connect is in {runtime.data_dir}/runtime.json", ""]
        self._print("\n".join(lines))

    def _print(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _commands(runtime: Runtime) -> list[str]:
    subscriptions, ledger = runtime.addresses["subscriptions"], runtime.addresses["ledger"]
    provision = "billing.subscriptions.v1.SubscriptionsService/ProvisionTenant"
    balance = "billing.ledger.v1.LedgerService/GetBalance"
    acme = '{"tenantId": "acme", "idempotencyKey": "hello-acme"}'
    curl = '.venv/bin/buf curl --protocol grpc --reflect-header "*" -H "$KEY"'
    grpcurl = 'grpcurl -plaintext -H "$KEY"'
    return [
        # Fetched, not shown: terminals are shared and their output is kept.
        '  KEY="x-gateway-key: $(.venv/bin/python -m suite key)"',
        "",
        f"  {curl} --list-methods http://{ledger}",
        f"  {curl} -d '{acme}' http://{subscriptions}/{provision}",
        f"""  {curl} -d '{{"tenantId": "acme"}}' http://{ledger}/{balance}""",
        "",
        f"  {grpcurl} {ledger} list",
        f"  {grpcurl} -d '{acme}' {subscriptions} {provision}",
        f"""  {grpcurl} -d '{{"tenantId": "acme"}}' {ledger} {balance}""",
        "",
    ]
