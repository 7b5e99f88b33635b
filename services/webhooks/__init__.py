"""The ingress: takes a payment provider's deliveries in, loses none, believes none unsigned, hands each on once."""

from pathlib import Path

from shared.migrations import Schema

SCHEMA = Schema("webhooks", Path(__file__).parent / "migrations")
