"""Decisions of the room: pure, without I/O and without a clock."""
