"""The HTTP session under Razorpay's SDK.

The SDK has no timeout, prints to stdout, loses the status and the field of an error, trusts certificates of 2015 and
follows redirects. It lets exceptions through that are not of `requests`, which is how these keep their detail.
"""

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError

from shared import sensitive
from shared.ops import strangers

CONNECT_TIMEOUT_SECONDS = 3.0
READ_TIMEOUT_SECONDS = 10.0


class ApiError(Exception):
    """The provider answered with an error."""

    def __init__(
        self, status: int, code: str = "", description: str = "", field: str = "", reason: str = ""
    ) -> None:
        super().__init__(f"{status} {code}: {description}")
        self.status = status
        self.code = code
        self.description = description
        self.field = field
        self.reason = reason

    @property
    def busy(self) -> bool:
        """True: turned away at the door, so nothing was done."""
        return self.status == 429

    @property
    def locked_out(self) -> bool:
        """True: it does not know our keys, or lets them do nothing of the kind."""
        return self.status in (401, 403)

    @property
    def definite(self) -> bool:
        """True: the provider refused and did nothing. False: it may have done it, or may do it later."""
        return (
            400 <= self.status < 500 and self.status not in (408, 409, 429) and self.code != "GATEWAY_ERROR"
        )


class NoAnswer(Exception):
    """The provider did not answer: what it did is unknown."""


class NotSent(NoAnswer):
    """The provider was not reached: it did nothing."""


class Session(requests.Session):
    """Bounded in time, confined to one host, with typed errors."""

    def __init__(self, *, threads: int, secret: str = "") -> None:
        super().__init__()
        self.trust_env = False
        self._secret = secret
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=threads, max_retries=0)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send once; every outcome but a JSON answer in the 200s is raised as one of ours."""
        kwargs["timeout"] = (CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS)
        kwargs["allow_redirects"] = False
        try:
            response = super().request(*args, **kwargs)
        except requests.ConnectTimeout as error:
            raise NotSent(type(error).__name__) from error
        except requests.RequestException as error:
            if _refused(error):
                raise NotSent(type(error).__name__) from error
            raise NoAnswer(type(error).__name__) from error
        if not 200 <= response.status_code < 300:
            raise _api_error(response, self._secret)
        try:
            response.json()
        except ValueError as error:
            raise NoAnswer(f"{response.status_code} without JSON") from error
        return response


def _refused(error: requests.RequestException) -> bool:
    """Whether no connection came about; one that broke may have carried the request."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, NewConnectionError)


def _api_error(response: requests.Response, secret: str) -> ApiError:
    try:
        body = response.json()
    except ValueError:
        return ApiError(response.status_code)
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ApiError(response.status_code)
    # These words reach callers, rows and logs.
    words = {
        name: strangers.words(value.replace(secret, sensitive.MASK) if secret else value)
        for name in ("code", "description", "field", "reason")
        if isinstance(value := error.get(name), str) and value != "NA"
    }
    return ApiError(response.status_code, **words)
