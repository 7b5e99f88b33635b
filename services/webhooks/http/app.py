"""Routes: a provider's deliveries, health and metrics."""

import asyncio
import hashlib
import time
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.webhooks.actions import accept
from services.webhooks.actions.watch import Watchman
from services.webhooks.errors import NotStored
from services.webhooks.failures import FailureLog
from services.webhooks.http.body import Budget, Crowded, Gone, Share, TooLarge, TooSlow, read_body
from services.webhooks.http.strangers import Strangers
from services.webhooks.inbox import Inbox
from services.webhooks.metrics import Metrics
from services.webhooks.rules import addresses
from services.webhooks.rules.addresses import Address, Network
from services.webhooks.rules.inbox import LARGE_BYTES, Endpoint, SignatureFailure
from services.webhooks.rules.providers import PROVIDERS
from shared import logs
from shared.clock import Clock
from shared.metrics import MEDIA_TYPE, Exposition

_CLOSE = {"connection": "close"}
_STORED = JSONResponse({"status": "stored"})
_DUPLICATE = JSONResponse({"status": "duplicate"})

_log = logs.get_logger()


class Ingress:
    """Answers 200 for what is on disk, 401 for what is not signed (429 when one address sends too much of it), 413 for
    what is too large, 503 for what was not stored; nothing in a header or a body makes it answer any other 5xx."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        inbox: Inbox,
        failures: FailureLog,
        strangers: Strangers,
        trusted_proxies: Sequence[Network],
        watchman: Watchman,
        metrics: Metrics,
        exposition: Exposition,
        clock: Clock,
        body_bytes_max: int,
        receive_seconds: float,
    ) -> None:
        self._endpoints = {(end.provider, end.path): end for end in endpoints}
        self._inbox = inbox
        self._failures = failures
        self._strangers = strangers
        self._trusted_proxies = trusted_proxies
        self._watchman = watchman
        self._metrics = metrics
        self._exposition = exposition
        self._clock = clock
        self._body_bytes_max = body_bytes_max
        self._receive_seconds = receive_seconds
        self._budget = Budget()
        for end in endpoints:  # counted from nothing: a rate needs a first value
            metrics.signature_failures.labels(provider=end.provider, endpoint=end.path)

    def app(self) -> ASGIApp:
        """The ASGI application."""
        rest = Starlette(
            routes=[
                Route("/webhooks/{provider}", self._elsewhere, methods=["POST"]),
                Route("/webhooks/{provider}/", self._elsewhere, methods=["POST"]),
                Route("/webhooks/{provider}/{endpoint}", self._elsewhere, methods=["POST"]),
                Route("/webhooks/{provider}/{endpoint}/", self._elsewhere, methods=["POST"]),
                Route("/healthz", self._health, methods=["GET"]),
                Route("/metrics", self._scrape, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )
        # It would send people to wherever the Host header says, and fail on one that is none.
        rest.router.redirect_slashes = False
        addresses = {end.address: end for end in self._endpoints.values()}

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            # The router and what surrounds it cost as much as verifying; where providers post to is known without.
            endpoint = addresses.get(scope["path"]) if scope.get("method") == "POST" else None
            if endpoint is None:
                await rest(scope, receive, send)
            else:
                response = await self._webhook(scope, receive, endpoint)
                await response(scope, receive, send)

        return app

    async def _elsewhere(self, request: Request) -> Response:
        """A delivery to an address that is spelled in another way, or that is none of ours."""
        endpoint = self._endpoint(request)
        if endpoint is None:
            return _error(404, "UNKNOWN_PROVIDER", "no such provider", _CLOSE)
        return await self._webhook(request.scope, request.receive, endpoint)

    async def _webhook(self, scope: Scope, receive: Receive, endpoint: Endpoint) -> Response:
        logs.request_id.set(logs.new_request_id())
        started_at = time.monotonic()
        with self._budget.share() as share:
            result, response = await self._answer(scope, receive, endpoint, share)
        self._metrics.answered(endpoint.provider, result)
        self._metrics.accept_seconds.observe(time.monotonic() - started_at)
        # What anybody can cause without a signature is counted, not logged: logs fill disks too.
        write = logs.often if result in ("stored", "duplicate", "not_stored") else _log.debug
        write("webhook", result=result, status=response.status_code)
        return response

    def _endpoint(self, request: Request) -> Endpoint | None:
        provider, path = request.path_params["provider"], request.path_params.get("endpoint", "")
        # A path that names no endpoint of ours is the default one under another spelling: were it an identity of
        # its own, a body repeated under ever new paths would never be a duplicate.
        return self._endpoints.get((provider, path)) or self._endpoints.get((provider, ""))

    async def _answer(
        self, scope: Scope, receive: Receive, endpoint: Endpoint, share: Share
    ) -> tuple[str, Response]:
        try:
            body = await read_body(
                scope, receive, share, bytes_max=self._body_bytes_max, seconds=self._receive_seconds
            )
        except TooLarge:
            message = f"the limit is {self._body_bytes_max} bytes"
            return "too_large", _error(413, "BODY_TOO_LARGE", message, _CLOSE)
        except TooSlow:
            return "too_slow", _error(408, "BODY_TOO_SLOW", "the body did not arrive in time", _CLOSE)
        except Gone:
            return "gone", _error(400, "INCOMPLETE", "the body ended early", _CLOSE)
        except Crowded:
            return "crowded", _not_stored()
        try:
            return await self._take_in(scope, endpoint, body)
        except Exception as error:
            # Whatever it was, it is not surely on disk, so the provider must send it again. Its text may quote the
            # body, so it is not logged.
            if not isinstance(error, NotStored):
                _log.error("webhook_failed", error_type=type(error).__name__)
            return "not_stored", _not_stored()

    async def _take_in(self, scope: Scope, endpoint: Endpoint, body: bytes) -> tuple[str, Response]:
        headers = scope["headers"]
        now = self._clock()
        # Before any limit: what a provider signed is never refused for what others send from the same address.
        signed_with = await accept.verify(endpoint, headers, body, now)
        if signed_with is None:
            return await self._refuse(Request(scope), endpoint, body)
        self._metrics.signed(endpoint.provider, endpoint.path, signed_with)
        new = await accept.receive(
            self._inbox,
            endpoint,
            headers,
            body,
            signed_with,
            received_at=now,
            request_id=logs.request_id.get(),
        )
        return ("stored", _STORED) if new else ("duplicate", _DUPLICATE)

    async def _refuse(self, request: Request, endpoint: Endpoint, body: bytes) -> tuple[str, Response]:
        self._metrics.signature_failures.labels(provider=endpoint.provider, endpoint=endpoint.path).inc()
        address = self._sender(request)
        claimed = PROVIDERS[endpoint.provider].event_id(request.headers.raw)
        self._failures.record(
            SignatureFailure(
                endpoint="webhook",
                path=endpoint.path or None,
                tenant_id=None,  # the body may name one, but nobody signed it
                remote_ip=str(address) if address else None,
                user_agent=request.headers.get("user-agent", "")[:512],  # cleaning costs time by its length
                payload_id=claimed or f"sha256:{await _digest(body)}",
            )
        )
        if wait := await self._strangers.wait_seconds(address):
            message = "too many deliveries without a valid signature"
            return "rate_limited", _error(429, "RATE_LIMITED", message, {"retry-after": str(wait)})
        return "bad_signature", _error(401, "INVALID_SIGNATURE", "the signature does not match the body")

    def _sender(self, request: Request) -> Address | None:
        peer = request.client.host if request.client else None
        forwarded = [value for name, value in request.headers.raw if name == b"x-forwarded-for"]
        return addresses.sender(peer, forwarded, self._trusted_proxies)

    async def _health(self, _request: Request) -> Response:
        if await self._watchman.database_answers():
            return JSONResponse({"status": "ok"})
        return _error(503, "DATABASE_UNREACHABLE", "the database does not answer")

    async def _scrape(self, _request: Request) -> Response:
        return Response(await self._exposition.text(), media_type=MEDIA_TYPE)


async def _digest(body: bytes) -> str:
    digest = (
        await asyncio.to_thread(hashlib.sha256, body) if len(body) > LARGE_BYTES else hashlib.sha256(body)
    )
    return digest.hexdigest()[:16]


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def _not_stored() -> JSONResponse:
    headers = {"retry-after": "1", **_CLOSE}
    return _error(503, "NOT_STORED", "the delivery was not stored; send it again", headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "HTTP_ERROR")
    headers = {**(error.headers or {}), **_CLOSE}
    return _error(error.status_code, code, str(error.detail), headers)
