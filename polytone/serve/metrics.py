"""Prometheus metrics of the server, explained in docs/metrics.md."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One server's metrics in a registry of their own. Adapter labels come from routing only, never from a request."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("adapter", "version")
        self.requests_total = Counter(
            "polytone_requests", "Requests answered.", (*labels, "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "polytone_request_seconds",
            "Time from request to last byte.",
            labels,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.ttft_seconds = Histogram(
            "polytone_ttft_seconds",
            "Time from request to first streamed event.",
            labels,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.inter_token_seconds = Histogram(
            "polytone_inter_token_seconds",
            "Mean time between tokens of a streamed answer.",
            labels,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.tokens_total = Counter(
            "polytone_tokens", "Tokens read and written.", (*labels, "kind"), registry=self.registry
        )
        self.in_flight = Gauge("polytone_in_flight", "Requests being answered.", registry=self.registry)
        self.queue_depth = Gauge(
            "polytone_queue_depth", "Requests that wait for their voice's turn.", registry=self.registry
        )
        self.rejected_total = Counter(
            "polytone_rejected", "Requests refused before an answer.", ("reason",), registry=self.registry
        )
        self.adapter_load_seconds = Histogram(
            "polytone_adapter_load_seconds",
            "Time to check, load and verify a version.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.adapter_loads_total = Counter(
            "polytone_adapter_loads", "Loads by result.", ("result",), registry=self.registry
        )
        for result in ("ready", "failed"):
            self.adapter_loads_total.labels(result)  # a count that begins at 1 is no increase to Prometheus
        self.adapter_fetches_total = Counter(
            "polytone_adapter_fetches", "Fetches from the adapter store by result.", ("result",), registry=self.registry
        )
        self.adapter_fetch_seconds = Histogram(
            "polytone_adapter_fetch_seconds",
            "Time to fetch a version from the adapter store and check it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.adapters_resident = Gauge(
            "polytone_adapters_resident", "Versions in the engine's memory.", registry=self.registry
        )
        self.adapters_published = Gauge(
            "polytone_adapters_published", "Versions this replica should serve.", registry=self.registry
        )
        self.adapters_limit = Gauge(
            "polytone_adapters_limit", "Versions that fit in the engine's memory.", registry=self.registry
        )
        self.adapter_evictions_total = Counter(
            "polytone_adapter_evictions", "Versions evicted to make room.", registry=self.registry
        )
        self.engine_up = Gauge("polytone_engine_up", "1 while the engine answers.", registry=self.registry)
        self.engine_restarts_total = Counter(
            "polytone_engine_restarts", "Times a dead engine was rebuilt.", registry=self.registry
        )

        self.traffic_dropped_total = Counter(
            "polytone_traffic_dropped", "Answers that left no row.", registry=self.registry
        )
        self.feedback_total = Counter(
            "polytone_feedback", "Feedback taken.", (*labels, "key", "value"), registry=self.registry
        )

        self.reviews = Gauge(
            "polytone_reviews", "Answers in the review queue.", ("state", "reason"), registry=self.registry
        )
        self._reviews: set[tuple[str, str]] = set()

        self.drift_state = Gauge(
            "polytone_drift_state",
            "0 no reference, 1 warming up, 2 insufficient traffic, 3 ok, 4 drift.",
            (*labels, "signal"),
            registry=self.registry,
        )
        self.drift_statistic = Gauge(
            "polytone_drift_statistic",
            "Evidence as a share of what raises an alarm; of topics, the last test's p-value.",
            (*labels, "signal"),
            registry=self.registry,
        )
        self.drift_alarms_total = Counter(
            "polytone_drift_alarms", "Drift alarms raised.", (*labels, "signal"), registry=self.registry
        )
        self.drift_expected_false_alarms_total = Counter(
            "polytone_drift_expected_false_alarms",
            "Alarms that chance alone raises on average, at most, in what was observed.",
            labels,
            registry=self.registry,
        )

    def show_reviews(self, counts: dict[tuple[str, str], int]) -> None:
        """(state, reason) -> how many. What is named once stays, at zero."""
        self._reviews |= counts.keys()
        for key in self._reviews:
            self.reviews.labels(*key).set(counts.get(key, 0))

    def render(self) -> bytes:
        return generate_latest(self.registry)
