"""What follows a call from room to room: its deadline. (The request id lives in `shared.logs`.)"""

import contextvars
import time

# A moment of time.monotonic(), or None outside a call.
deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("rpc_deadline", default=None)

DEFAULT_TIMEOUT_SECONDS = 10.0
# Kept back at every hop, so that the inner call's timeout is reported before the outer one's (as boulder does).
SHAVE_SECONDS = 0.02

KEY_HEADER = "x-gateway-key"
REQUEST_ID_HEADER = "x-request-id"
# Wall-clock milliseconds at which the caller sent the request: lets a busy server refuse what has grown old.
SENT_HEADER = "x-sent-ms"


def remaining_seconds() -> float | None:
    """What is left of the current call's deadline; None outside a call."""
    ends_at = deadline.get()
    return None if ends_at is None else ends_at - time.monotonic()
