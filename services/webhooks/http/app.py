"""Routes: a provider's deliveries, health and metrics."""

import hashlib
import re
import time
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.webhooks.actions import accept
from services.webhooks.actions.watch import Watchman
from services.webhooks.errors import NotStored
from services.webhooks.failures import FailureLog
from services.webhooks.http.body import Budget, Crowded, Gone, TooLarge, TooSlow, read_body
from services.webhooks.inbox import Inbox
from services.webhooks.metrics import Metrics
from services.webhooks.rules.inbox import Endpoint, SignatureFailure
from services.webhooks.rules.providers import PROVIDERS
from shared import logs
from shared.clock import Clock

_CLOSE = {"connection": "close"}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")

_log = logs.get_logger()


class Ingress:
    """Answers 200 for what is on disk, 401 for what is not signed, 413 for what is too large, 503 for what was not
    stored; nothing in a header or a body makes it answer anything else."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        inbox: Inbox,
        failures: FailureLog,
        watchman: Watchman,
        metrics: Metrics,
        clock: Clock,
        body_bytes_max: int,
        receive_seconds: float,
    ) -> None:
        self._endpoints = {(end.provider, end.path): end for end in endpoints}
        self._inbox = inbox
        self._failures = failures
        self._watchman = watchman
        self._metrics = metrics
        self._clock = clock
        self._body_bytes_max = body_bytes_max
        self._receive_seconds = receive_seconds
        self._budget = Budget()

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/webhooks/{provider}", self._webhook, methods=["POST"]),
                Route("/webhooks/{provider}/{endpoint}", self._webhook, methods=["POST"]),
                Route("/healthz", self._health, methods=["GET"]),
                Route("/metrics", self._scrape, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    async def _webhook(self, request: Request) -> Response:
        endpoint = self._endpoint(request)
        if endpoint is None:
            return _error(404, "UNKNOWN_PROVIDER", "no such provider", _CLOSE)
        logs.request_id.set(logs.new_request_id())
        started_at = time.monotonic()
        result, response = await self._take_in(request, endpoint)
        self._metrics.requests.labels(provider=endpoint.provider, result=result).inc()
        self._metrics.accept_seconds.observe(time.monotonic() - started_at)
        # What anybody can cause without a signature is counted, not logged: logs fill disks too.
        write = _log.info if result in ("stored", "duplicate", "not_stored") else _log.debug
        write("webhook", result=result, status=response.status_code)
        return response

    def _endpoint(self, request: Request) -> Endpoint | None:
        provider, path = request.path_params["provider"], request.path_params.get("endpoint", "")
        # A path that names no endpoint of ours is the default one under another spelling: were it an identity of
        # its own, a body repeated under ever new paths would never be a duplicate.
        return self._endpoints.get((provider, path)) or self._endpoints.get((provider, ""))

    async def _take_in(self, request: Request, endpoint: Endpoint) -> tuple[str, Response]:
        try:
            body = await read_body(
                request, self._budget, bytes_max=self._body_bytes_max, seconds=self._receive_seconds
            )
        except TooLarge:
            return "too_large", _error(
                413, "BODY_TOO_LARGE", f"the limit is {self._body_bytes_max} bytes", _CLOSE
            )
        except TooSlow:
            return "too_slow", _error(408, "BODY_TOO_SLOW", "the body did not arrive in time", _CLOSE)
        except Gone:
            return "gone", _error(400, "INCOMPLETE", "the body ended early", _CLOSE)
        except Crowded:
            return "crowded", _not_stored()
        headers = request.headers.raw
        now = self._clock()
        signed_with = await accept.verify(endpoint, headers, body, now)
        if signed_with is None:
            self._refused(request, endpoint, body)
            return "bad_signature", _error(401, "INVALID_SIGNATURE", "the signature does not match the body")
        self._metrics.signed.labels(
            provider=endpoint.provider, endpoint=endpoint.path, secret=signed_with
        ).inc()
        try:
            new = await accept.receive(
                self._inbox,
                endpoint,
                headers,
                body,
                signed_with,
                received_at=now,
                request_id=logs.request_id.get(),
            )
        except Exception as error:
            # Whatever it was, it is not surely on disk, so the provider must send it again. Its text may quote the
            # body, so it is not logged.
            if not isinstance(error, NotStored):
                _log.error("webhook_failed", error_type=type(error).__name__)
            return "not_stored", _not_stored()
        return ("stored" if new else "duplicate"), JSONResponse({"status": "stored" if new else "duplicate"})

    def _refused(self, request: Request, endpoint: Endpoint, body: bytes) -> None:
        self._metrics.signature_failures.labels(provider=endpoint.provider).inc()
        claimed = PROVIDERS[endpoint.provider].event_id(request.headers.raw)
        self._failures.record(
            SignatureFailure(
                endpoint="webhook",
                tenant_id=None,  # the body may name one, but nobody signed it
                remote_ip=request.client.host if request.client else None,
                user_agent=_UNPRINTABLE.sub("?", request.headers.get("user-agent", ""))[:200] or None,
                payload_id=claimed or f"sha256:{hashlib.sha256(body).hexdigest()[:16]}",
            )
        )

    async def _health(self, _request: Request) -> Response:
        if await self._watchman.database_answers():
            return JSONResponse({"status": "ok"})
        return _error(503, "DATABASE_UNREACHABLE", "the database does not answer")

    async def _scrape(self, _request: Request) -> Response:
        await self._watchman.refresh(self._metrics)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


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
