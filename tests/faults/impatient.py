"""The ledger as a process, but its sessions may idle in a transaction for a second, not fifteen: tests wait for it."""

import runpy

from shared import database

_options = database.session_options
database.session_options = lambda: f"{_options()} -c idle_in_transaction_session_timeout=1s"

if __name__ == "__main__":
    runpy.run_module("services.ledger", run_name="__main__")
