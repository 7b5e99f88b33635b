"""The line between the room and the provider, cut where a test wants it, and a room that can be killed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.conftest import Database
from tests.sandbox.running import KEY_ID, KEY_SECRET
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_process import ROOT, environment


@dataclass
class Line:
    """Where the provider is reached, and whether an answer is being held back."""

    url: str
    held: threading.Event = field(default_factory=threading.Event)


@contextmanager
def holding_back_answers(room: Room, path: str = r"/v1/subscriptions") -> Iterator[Line]:
    """The real provider, except that nobody hears its answer to posts of this path."""
    released = threading.Event()

    class Wire(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.carry("GET", b"")

        def do_POST(self) -> None:
            self.carry("POST", self.rfile.read(int(self.headers["Content-Length"] or 0)))

        def carry(self, method: str, body: bytes) -> None:
            kept = ("authorization", "content-type", "x-refund-idempotency")
            headers = {name: value for name, value in self.headers.items() if name.lower() in kept}
            answer = httpx.request(
                method, f"{room.sandbox.url}{self.path}", content=body, headers=headers, trust_env=False
            )
            if method == "POST" and re.fullmatch(path, self.path):
                line.held.set()
                released.wait(20)
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Wire) as server:
        line = Line(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield line
        released.set()
        server.shutdown()
        thread.join()


@contextmanager
def a_process(room: Room, database: Database, line: Line, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The room in a process of its own, on the same tables, which reaches the provider over this line."""
    told = environment(
        database,
        SUBSCRIPTIONS_LISTEN=f"127.0.0.1:{port}",
        LEDGER_ADDRESS=room.ledger.address,
        RAZORPAY_KEY_ID=KEY_ID,
        RAZORPAY_KEY_SECRET=KEY_SECRET,
        RAZORPAY_API_URL=line.url,
    )
    process = subprocess.Popen([sys.executable, "-m", "services.subscriptions"], cwd=ROOT, env=told)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
