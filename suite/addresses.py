"""Where everything listens: the default ports, others when those are taken."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
DEFAULTS = {
    "ledger": f"{LOOPBACK}:50051",
    "subscriptions": f"{LOOPBACK}:50052",
    "webhooks": f"{LOOPBACK}:50053",
    "scheduler": f"{LOOPBACK}:50054",
    "webhooks_http": f"{LOOPBACK}:8080",
    "sandbox": f"{LOOPBACK}:8090",
    "ledger_metrics": f"{LOOPBACK}:9051",
    "subscriptions_metrics": f"{LOOPBACK}:9052",
    "webhooks_metrics": f"{LOOPBACK}:9053",
    "scheduler_metrics": f"{LOOPBACK}:9054",
}


class AddressTaken(Exception):
    """The user asked for an address that another program has."""


def choose(wished: Mapping[str, str | None], reserved: ExitStack) -> dict[str, str]:
    """One bindable `host:port` for each door; a port of 0 asks for any free one.

    The rooms bind them seconds later, so until `reserved` is closed no other launcher is given the same ones.
    """
    with ExitStack() as held:
        # The sockets stay open until all are chosen, so that no free port is given out twice.
        return {name: _claim(name, wished.get(name), held, reserved) for name in DEFAULTS}


def moves(wished: Mapping[str, str | None], chosen: Mapping[str, str]) -> list[str]:
    """A sentence for each door that is not where it usually is, lest somebody calls a stranger there."""
    return [
        f"{usual} is taken by another program; {name} listens on {chosen[name]}"
        for name, usual in DEFAULTS.items()
        if wished.get(name) is None and chosen[name] != usual
    ]


def _claim(name: str, wished: str | None, held: ExitStack, reserved: ExitStack) -> str:
    host, port = split(wished or DEFAULTS[name])
    try:
        taken = _bind(host, port, held)
        _reserve(taken, reserved)
    except (OSError, OverflowError) as error:
        if wished is not None:
            raise AddressTaken(
                f"{name.upper()}_LISTEN asks for {wished}, which cannot be had: {getattr(error, 'strerror', error)}. "
                "Choose another, or leave it unset and a free one is chosen."
            ) from error
        taken = _bind(host, 0, held)
        _reserve(taken, reserved)
    return f"[{host}]:{taken}" if ":" in host else f"{host}:{taken}"


def _reserve(port: int, reserved: ExitStack) -> None:
    """Tells every launcher of this machine, whoever runs it, that the port is spoken for."""
    if sys.platform == "linux":
        # A name outside the file system: it has no owner and is gone with the process, however that ends.
        flag = reserved.enter_context(socket.socket(socket.AF_UNIX))
        flag.bind(f"\0billing-suite-port-{port}")


def _bind(host: str, port: int, held: ExitStack) -> int:
    probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
    probe.bind((host, port))
    return int(probe.getsockname()[1])


def free_port(preferred: Iterable[int]) -> int:
    """The first preferred port on loopback that is free, else any."""
    for port in (*preferred, 0):
        with ExitStack() as held:
            try:
                return _bind(LOOPBACK, port, held)
            except OSError:
                continue
    raise AddressTaken("no free port is left on 127.0.0.1")


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def reachable(listen: str) -> str:
    """How a neighbour on this machine calls what listens there: a wildcard is no destination."""
    host, port = split(listen)
    if host in ("", "0.0.0.0"):  # noqa: S104 - compared, not bound
        return f"{LOOPBACK}:{port}"
    if host == "::":
        return f"[::1]:{port}"
    return listen
