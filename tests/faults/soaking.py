"""What a run is told from outside: how long the long forms last, and the seed to repeat a run with."""

import os
import random

SECONDS = float(os.environ.get("SOAK_SECONDS") or 600)


def seed(default: int) -> int:
    """SOAK_SEED, or the given one; printed, since a failure is reported with what was printed."""
    number = int(os.environ.get("SOAK_SEED") or default)
    print(f"seed {number}: make soak SEED={number} repeats it")
    return number


def any_seed() -> int:
    """For long forms: another one every time, unless SOAK_SEED says otherwise."""
    return seed(random.randrange(1_000_000))
