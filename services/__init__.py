"""The rooms of the house: each owns one schema, one role and its contracts."""
