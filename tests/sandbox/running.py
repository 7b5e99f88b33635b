"""A sandbox in a process of its own, and an endpoint that receives its webhooks."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import razorpay

ROOT = Path(__file__).resolve().parents[2]
KEY_ID, KEY_SECRET, WEBHOOK_SECRET = "rzp_test_sandbox01", "key-secret-of-tests", "webhook-secret-of-tests"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The condition's first true answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


class Sandbox:
    """`python -m sandbox` on a free port."""

    def __init__(self, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self.http = httpx.Client(base_url=self.url, trust_env=False)
        self.process = self._start()

    @property
    def sdk(self) -> Any:
        return razorpay.Client(auth=(KEY_ID, KEY_SECRET), base_url=self.url)

    def act(self, path: str, /, **body: Any) -> list[dict[str, Any]]:
        """Calls the control API; answers the deliveries with their bodies parsed under `parsed`."""
        answer = self.http.post(f"/_sandbox/{path}", json=body)
        assert answer.status_code == 200, answer.text
        deliveries: list[dict[str, Any]] = answer.json()
        for delivery in deliveries:
            delivery["body"] = base64.b64decode(delivery["body_base64"])
            delivery["parsed"] = json.loads(delivery["body"])
        return deliveries

    def refusal(self, path: str, /, **body: Any) -> str:
        answer = self.http.post(f"/_sandbox/{path}", json=body)
        assert answer.status_code == 400, answer.text
        description: str = answer.json()["error"]["description"]
        return description

    def set(self, path: str, /, **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"/_sandbox/{path}", json=body)
        assert answer.status_code == 200, answer.text
        settings: dict[str, Any] = answer.json()
        return settings

    def restart(self, *, kill: bool) -> None:
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        status = self.process.wait(10)
        assert kill or status == 0
        self.process = self._start()

    def close(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(10)

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {
            "PATH": os.environ["PATH"],
            "SANDBOX_LISTEN": f"127.0.0.1:{self.port}",
            "RAZORPAY_KEY_ID": KEY_ID,
            "RAZORPAY_KEY_SECRET": KEY_SECRET,
            "RAZORPAY_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "LOG_LEVEL": "warning",
            **self._environment,
        }
        process = subprocess.Popen([sys.executable, "-m", "sandbox"], cwd=ROOT, env=environment)
        until(self._answers, 20)
        return process

    def _answers(self) -> bool:
        try:
            return self.http.get("/healthz").json() == {"status": "ok"}
        except httpx.TransportError:
            return False


@dataclass
class Received:
    """One request that reached the endpoint."""

    at: float
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> str:
        name: str = json.loads(self.body)["event"]
        return name

    @property
    def event_id(self) -> str:
        return self.headers["x-razorpay-event-id"]


@dataclass
class Endpoint:
    """A merchant's webhook endpoint; `answer` decides the status of each delivery."""

    url: str
    answer: Callable[[Received], int]
    received: list[Received] = field(default_factory=list)


@contextmanager
def listening(answer: Callable[[Received], int] = lambda _: 200) -> Iterator[Endpoint]:
    """A real HTTP server that keeps what it is sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(time.monotonic(), headers, body)
            endpoint.received.append(received)
            self.send_response(endpoint.answer(received))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/webhooks/razorpay", answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
