"""The ceiling of the ingress: `python -m bench.verifier ADDRESS` reads a body, verifies its signature and answers 200."""

from __future__ import annotations

import os
import sys

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.webhooks.http.server import bind, serve_http
from services.webhooks.rules.providers import PROVIDERS
from shared import clock

SECRETS = (os.environ.get("RAZORPAY_WEBHOOK_SECRET", "").encode(),)


async def deliver(request: Request) -> Response:
    """Stores nothing and knows nothing."""
    body = await request.body()
    if PROVIDERS["razorpay"].verify(request.headers.raw, body, SECRETS, clock.now()) is None:
        return JSONResponse({"error": "signature"}, status_code=401)
    return JSONResponse({"status": "stored"})


async def main() -> None:
    """The server of the ingress itself: uvicorn with httptools on uvloop, with the same limits."""
    app = Starlette(routes=[Route("/webhooks/{provider}", deliver, methods=["POST"])])
    await serve_http(app, bind(sys.argv[1]), receive_seconds=5.0, connections_max=2048)


if __name__ == "__main__":
    uvloop.run(main())
