"""Razorpay's REST API under /v1, for the official SDK."""
