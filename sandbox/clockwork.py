"""The sandbox's own clock: the house's clock, and as far ahead of it as somebody moved it."""

import os
from datetime import datetime, timedelta

from sandbox.errors import Refusal
from shared import clock

# Moments of Razorpay's end soon after.
LONGEST_LEAP = timedelta(days=75 * 365)


class MovableClock:
    """Time that can be moved forward and never back."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return clock.now() + self.ahead

    def move(self, by: timedelta) -> None:
        """Leaps forward."""
        if os.environ.get("BILLING_TEST_CLOCK"):
            raise Refusal("BILLING_TEST_CLOCK moves this clock: write to its file")
        if by < timedelta():
            raise Refusal("Time does not go back")
        if self.ahead + by > LONGEST_LEAP:
            raise Refusal(f"This clock stops {LONGEST_LEAP.days} days from today")
        self.ahead += by
