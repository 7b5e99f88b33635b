"""Plumbing that knows nothing of billing."""
