"""A process of its own that supervises a cluster until it is killed: `python -m tests.suite.supervisor FOLDER`."""

import signal
import sys
from pathlib import Path

from suite.postgres import EmbeddedPostgres

if __name__ == "__main__":
    server = EmbeddedPostgres(Path(sys.argv[1]), port=0)
    server.start()
    print(server.server_pid(), server.url("postgres"), flush=True)
    signal.pause()
