"""Pure decisions over frozen values: no I/O and no clock. Start with `batch.decide`."""
