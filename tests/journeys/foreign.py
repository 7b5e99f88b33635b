"""A client nobody here wrote: `buf curl`, over gRPC and reflection."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.rpc import error_details_pb2

BUF = str(Path(sys.executable).parent / "buf")

# buf's exit status is the gRPC code times eight.
NO_ANSWER = -1
OK, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 0, 3, 5, 7
FAILED_PRECONDITION, UNIMPLEMENTED, UNAUTHENTICATED = 9, 12, 16


@dataclass(frozen=True)
class Answer:
    """What the call answered: its gRPC code and the message, or the error, as JSON."""

    code: int
    body: dict[str, Any]
    text: str

    @property
    def reason(self) -> str:
        """The reason of google.rpc.ErrorInfo."""
        for detail in self.body.get("details", []):
            if detail["type"] == "google.rpc.ErrorInfo":
                value = detail["value"] + "=" * (-len(detail["value"]) % 4)
                return str(error_details_pb2.ErrorInfo.FromString(base64.b64decode(value)).reason)
        return ""


def call(address: str, method: str, request: dict[str, Any], *, key: str | None) -> Answer:
    """One call of `package.Service/Method`; the schema comes from the server itself."""
    headers = [] if key is None else ["-H", f"x-gateway-key: {key}", "--reflect-header", "*"]
    return run(*headers, "--timeout", "10s", "-d", json.dumps(request), f"http://{address}/{method}")


def list_methods(address: str, *, key: str | None) -> Answer:
    """Every method that reflection tells of."""
    headers = [] if key is None else ["-H", f"x-gateway-key: {key}", "--reflect-header", "*"]
    return run(*headers, "--list-methods", f"http://{address}")


def run(*arguments: str) -> Answer:
    """`buf curl --protocol grpc` with these arguments."""
    ended = subprocess.run(
        [BUF, "curl", "--protocol", "grpc", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    text = ended.stdout if ended.returncode == 0 else ended.stderr
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        body = {}
    # Below 8 it is buf itself that failed: no schema, no connection.
    code = ended.returncode // 8 if ended.returncode % 8 == 0 else NO_ANSWER
    return Answer(code, body, text)
