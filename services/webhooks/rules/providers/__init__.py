"""The payment providers whose deliveries are taken in. A new one is a module beside these and a line here."""

from collections.abc import Mapping

from services.webhooks.rules.providers import razorpay
from services.webhooks.rules.providers.seam import Headers, Provider

__all__ = ["PROVIDERS", "Headers", "Provider"]

PROVIDERS: Mapping[str, Provider] = {razorpay.NAME: razorpay}
