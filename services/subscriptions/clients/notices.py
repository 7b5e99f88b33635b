"""Where notices to tenants go: one endpoint of the product, which reaches people as it sees fit."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import httpx

from shared.database import assert_no_transaction

TIMEOUT_SECONDS = 5.0


class NoticeSink:
    """Posts notices, signed when there is a secret. Its URL is a secret and appears in no message."""

    def __init__(self, url: str, secret: str = "") -> None:
        self._url = url
        self._secret = secret.encode()
        # Made once: reading the certificate authorities takes longer than a post.
        self._tls = httpx.create_ssl_context()

    async def post(self, notice_id: str, body: Mapping[str, Any]) -> str | None:
        """Send one notice; None once the receiver took it, otherwise why it did not arrive."""
        assert_no_transaction("notice sink")
        content = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        headers = {"content-type": "application/json", "x-billing-notification-id": notice_id}
        if self._secret:
            signature = hmac.new(self._secret, content, hashlib.sha256).hexdigest()
            headers["x-billing-signature"] = f"sha256={signature}"
        try:
            # httpx bounds each step of an exchange; a receiver that trickles would hold us longer.
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                httpx.AsyncClient(timeout=TIMEOUT_SECONDS, verify=self._tls) as client,
                client.stream("POST", self._url, content=content, headers=headers) as answer,
            ):
                return None if answer.is_success else f"answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            return type(error).__name__
