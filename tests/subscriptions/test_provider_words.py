"""What the provider says reaches callers, rows and logs without card data and without our own keys."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from services.subscriptions.clients import entities
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import ProviderRefused
from tests.journeys.canaries import Canaries, hits

CANARIES = Canaries()
KEY_SECRET = CANARIES.secret()


@contextmanager
def provider_that_says(status: int, answer: dict[str, Any]) -> Iterator[str]:
    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_refusal_quotes_neither_cards_nor_keys() -> None:
    words = (
        f"card {CANARIES.card()} x{CANARIES.card()}y, cvv=123, {KEY_SECRET}: Bearer {CANARIES.secret()}, ₹500"
    )
    error = {
        "code": CANARIES.card(),
        "description": words,
        "field": KEY_SECRET,
        "reason": f"otp: {KEY_SECRET}",
    }
    with provider_that_says(400, {"error": error}) as url:
        razorpay = Razorpay(api_url=url, key_id="rzp_test_x", key_secret=KEY_SECRET)
        with pytest.raises(ProviderRefused) as refused:
            await razorpay.fetch_payment("pay_ABCDEFGHIJKLMN")
        razorpay.close()

    told = f"{refused.value.message} {refused.value.metadata}"
    assert hits({"refusal": told.encode()}, CANARIES.needles()) == []
    assert "cvv=[masked]" in told
    assert "₹500" in told


async def test_what_people_wrote_at_the_provider_is_masked_when_it_is_fetched() -> None:
    notes = {
        "tenant_id": "acme",
        "said": CANARIES.card(),
        CANARIES.card(): "x",
        "password": CANARIES.secret(),
    }
    entity = {
        "id": "sub_ABCDEFGHIJKLMN",
        "status": "active",
        "payment_method": CANARIES.card(),
        "notes": notes,
    }

    found = entities.subscription(entity)

    assert found.notes == {"tenant_id": "acme", "said": "[masked]", "[masked]": "x", "password": "[masked]"}
    assert (found.status, found.payment_method) == ("active", "[masked]")
