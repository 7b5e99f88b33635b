"""What Prometheus may ask of the ingress."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.webhooks.rules.providers import PROVIDERS

# What became of an event when it was handed on, in the words of dashboards. An attempt that another worker finished
# is counted there.
_STATUSES = {
    "applied": "processed",
    "superseded": "superseded",
    "ignored": "ignored",
    "duplicate": "duplicate",
    "failed": "failed",
    "dead": "dead",
}


class _Children(dict[tuple[str, ...], Counter]):
    """A counter's children by their labels; asking it for one takes longer than counting."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def __missing__(self, labels: tuple[str, ...]) -> Counter:
        child = self[labels] = self._counter.labels(*labels)
        return child


class Metrics:
    """The numbers of one process; each has its own registry, so that several can live in one test."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _Children(
            Counter(
                "billing_webhook_requests",
                "Requests at a provider's endpoint by their end",
                ["provider", "result"],
                registry=self.registry,
            )
        )
        self.signature_failures = Counter(
            "billing_webhook_signature_failures",
            "Deliveries refused for their signature, recorded in the database or not",
            ["provider", "endpoint"],
            registry=self.registry,
        )
        self._signed = _Children(
            Counter(
                "billing_webhook_signed",
                "Deliveries by the secret that signed them: after a rotation the previous one must fall silent",
                ["provider", "endpoint", "secret"],
                registry=self.registry,
            )
        )
        self.connections_closed = Counter(
            "billing_webhook_connections_closed",
            "Connections that the ingress ended before a request was whole or its answer read, by the reason",
            ["reason"],
            registry=self.registry,
        )
        self.accept_seconds = Histogram(
            "billing_webhook_accept_seconds",
            "From the first byte of the body to the answer",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.deliveries = Counter(
            "billing_webhook_deliveries",
            "Attempts to hand an event on, by result",
            ["result"],
            registry=self.registry,
        )
        self._events = Counter(
            "provider_webhook_events",
            "Attempts to hand an event on, by what became of the event: failed ones are tried again",
            ["provider", "status"],
            registry=self.registry,
        )
        # A rate needs a first value: without it the first failure would not be one.
        for provider in PROVIDERS:
            for status in _STATUSES.values():
                self._events.labels(provider, status)
        self.pending = Gauge(
            "billing_webhook_inbox_pending", "Events that wait to be delivered", registry=self.registry
        )
        self.due = Gauge(
            "billing_webhook_inbox_due",
            "Events that wait and whose next attempt is due",
            registry=self.registry,
        )
        self.lag_seconds = Gauge(
            "billing_webhook_inbox_lag_seconds",
            "How long the oldest event has waited",
            registry=self.registry,
        )
        self.dead_letters = Gauge(
            "webhook_dead_letter_queue_size", "Events that wait for a person", registry=self.registry
        )

    def answered(self, provider: str, result: str) -> None:
        """Counts one request."""
        self._requests[provider, result].inc()

    def signed(self, provider: str, endpoint: str, secret: str) -> None:
        """Counts one delivery whose signature held."""
        self._signed[provider, endpoint, secret].inc()

    def delivered(self, provider: str, result: str) -> None:
        """Counts one attempt."""
        self.deliveries.labels(result=result).inc()
        if status := _STATUSES.get(result):
            self._events.labels(provider, status).inc()

    def connection_closed(self, reason: str) -> None:
        """Counts one connection that was ended."""
        self.connections_closed.labels(reason=reason).inc()
