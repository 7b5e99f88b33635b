"""Every SQL statement of the scheduler, by noun."""
