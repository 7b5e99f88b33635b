"""The doors in: request to plain values, one action, response."""
