"""Starts the sandbox: `python -m sandbox`."""

import uvicorn

from sandbox.app import create_app
from sandbox.config import SandboxSettings
from sandbox.till import Till
from shared import logs
from shared.config import load


def main() -> None:
    """Reads the settings and serves until told to stop."""
    settings = load(SandboxSettings)
    logs.configure("sandbox", settings.log_level)
    host, _, port = settings.sandbox_listen.rpartition(":")
    logs.get_logger().info("sandbox listens", address=settings.sandbox_listen)
    uvicorn.run(
        create_app(Till(settings)),
        host=host,
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
