"""Starts the sandbox: `python -m sandbox`."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop

from sandbox.app import create_app
from sandbox.config import SandboxSettings
from sandbox.till import Till
from shared import logs
from shared.config import load


class Server(uvicorn.Server):
    """uvicorn, but a requested stop ends in exit status 0: a launcher takes anything else for a crash."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops on SIGINT and SIGTERM without raising them again afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def main() -> None:
    """Reads the settings and serves until told to stop."""
    settings = load(SandboxSettings)
    logs.configure("sandbox", settings.log_level)
    host, _, port = settings.sandbox_listen.rpartition(":")
    try:
        till = Till(settings)
    except RuntimeError as error:
        sys.exit(str(error))
    config = uvicorn.Config(
        create_app(till),
        host=host.strip("[]"),
        port=int(port),
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    logs.get_logger().info("sandbox listens", address=settings.sandbox_listen)
    uvloop.run(Server(config).serve())


if __name__ == "__main__":
    main()
