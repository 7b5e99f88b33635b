"""A year of tenants' lives through the whole suite, on one clock that is moved a day at a time."""
