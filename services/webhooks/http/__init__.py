"""The door that providers knock at."""
