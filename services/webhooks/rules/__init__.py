"""Pure decisions: nothing here reads a clock, a socket or a database."""
