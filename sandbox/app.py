"""The application: Razorpay's API, the control API, the checkout page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox import control, page
from sandbox.rest import doors
from sandbox.till import Till

# Turns of the loop within which a closed connection is noticed; two are enough.
HANG_UP_TURNS = 100


async def healthz(_: Request) -> JSONResponse:
    """Alive, with its state in memory."""
    return JSONResponse({"status": "ok"})


def create_app(till: Till) -> ASGIApp:
    """The sandbox as an ASGI application; its sender lives as long as the server."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        till.sender.start()
        try:
            yield
        finally:
            await till.sender.stop()
            till.world.close()

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            *page.routes(till),
            *control.routes(till),
            *doors.routes(till),
        ],
        lifespan=lifespan,
    )
    return HangUp(app)


class HangUp:
    """Gives every request a way to close its connection without an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # ASGI has no word for this: uvicorn's send is a method of the object that holds the transport.
            cycle = getattr(send, "__self__", None)

            async def hang_up() -> None:
                if cycle is not None:
                    cycle.transport.close()
                    for _ in range(HANG_UP_TURNS):
                        if cycle.disconnected:
                            break
                        await asyncio.sleep(0)

            scope["sandbox.hang_up"] = hang_up
        await self._app(scope, receive, send)
