"""The ledger as a process, but what it has given up keeps its locks for two seconds, not nine: tests wait for it."""

import runpy

from services.ledger import lanes

lanes.ROUND_TRIP_SECONDS = 1.0

if __name__ == "__main__":
    runpy.run_module("services.ledger", run_name="__main__")
