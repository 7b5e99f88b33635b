"""Proves that what a browser brings back comes from the provider's checkout."""

import hashlib
import hmac


def subscription_signature(secret: str, payment_id: str, subscription_id: str) -> str:
    """How the provider signs a subscription's payment: payment first."""
    return _sign(secret, f"{payment_id}|{subscription_id}")


def order_signature(secret: str, order_id: str, payment_id: str) -> str:
    """How the provider signs an order's payment: order first."""
    return _sign(secret, f"{order_id}|{payment_id}")


def matches(given: str, expected: str) -> bool:
    """Compares in constant time, on bytes, since a forged one may hold anything."""
    return hmac.compare_digest(given.encode(), expected.encode())


def _sign(secret: str, message: str) -> str:
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()
