"""Webhooks: what is sent, and how it is sent."""
