"""Every way the sandbox says no, in Razorpay's words."""

from typing import Any


class Refusal(Exception):
    """A request Razorpay would refuse with 400 and its error envelope."""

    status = 400
    code = "BAD_REQUEST_ERROR"

    def __init__(self, description: str, *, field: str | None = None) -> None:
        super().__init__(description)
        self.description = description
        self.field = field

    def envelope(self) -> dict[str, Any]:
        """The body of the answer; absent details are the word NA, as Razorpay writes them."""
        error: dict[str, Any] = {"code": self.code, "description": self.description}
        if self.field is not None:
            error["field"] = self.field
        return {"error": error | {"source": "NA", "step": "NA", "reason": "NA", "metadata": {}}}


class Conflict(Refusal):
    """Another request with the same idempotency key is still in progress."""

    status = 409


class WrongKey(Refusal):
    """The Basic credentials are not ours; the answer has nothing but a code and a description."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Authentication failed")

    def envelope(self) -> dict[str, Any]:
        """Code and description alone."""
        return {"error": {"code": self.code, "description": self.description}}


class TooManyRequests(Refusal):
    """The rate limit, whose numbers Razorpay does not publish."""

    status = 429

    def __init__(self) -> None:
        super().__init__("Too many requests")


class ServerError(Refusal):
    """Razorpay's own failure."""

    status = 500
    code = "SERVER_ERROR"

    def __init__(self) -> None:
        super().__init__(
            "We are facing some trouble completing your request at the moment. Please try again shortly."
        )


def unknown_id() -> Refusal:
    """No entity has this id."""
    return Refusal("The id provided does not exist")


def unknown_url() -> Refusal:
    """Also what Razorpay answers when a feature is not enabled."""
    return Refusal("The requested URL was not found on the server.")
