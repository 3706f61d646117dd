"""Prometheus metrics of one service process."""

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One registry with everything the service counts; made per application, so that two never share a number.

    With several worker processes `PROMETHEUS_MULTIPROC_DIR` names the folder through which prometheus_client adds up
    their numbers.
    """

    def __init__(self) -> None:
        # A creation time beside every number would double what is scraped.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "gaussearch_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "gaussearch_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.rejected = Counter(
            "gaussearch_rejected",
            "Requests not searched: overloaded, connections, deadline, cancelled.",
            ["reason"],
            registry=registry,
        )
        self.partial = Counter(
            "gaussearch_partial_answers", "Requests answered without the documents of some shards.", registry=registry
        )
        self.batch_rows = Histogram(
            "gaussearch_batch_rows", "Queries searched together.", buckets=_ROWS, registry=registry
        )
        self.search_seconds = Histogram(
            "gaussearch_search_seconds", "Time of one batch's search.", buckets=_SECONDS, registry=registry
        )
        self.encoded_texts = Histogram(
            "gaussearch_encoded_texts", "Texts encoded together.", buckets=_ROWS, registry=registry
        )
        self.encode_seconds = Histogram(
            "gaussearch_encode_seconds", "Time of encoding texts together.", buckets=_SECONDS, registry=registry
        )
        self.scanned = Counter("gaussearch_scanned_documents", "Documents compared with queries.", registry=registry)
        self.written = Counter("gaussearch_written_documents", "Documents written or deleted.", registry=registry)
        self.write_seconds = Histogram(
            "gaussearch_write_seconds",
            "Time to publish what was written together, until searches see it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.writes_together = Histogram(
            "gaussearch_writes_together", "Requests published together.", buckets=_ROWS, registry=registry
        )
        self.queue_rows = Gauge(
            "gaussearch_queue_rows", "Queries waiting.", multiprocess_mode="livesum", registry=registry
        )
        self.generation = Gauge(
            "gaussearch_index_generation", "Generation served.", multiprocess_mode="livemin", registry=registry
        )
        self.documents = Gauge(
            "gaussearch_index_documents", "Documents served.", multiprocess_mode="livemin", registry=registry
        )
        self.reloads = Counter("gaussearch_index_reloads", "New generations taken up.", registry=registry)
        self.reload_failures = Counter(
            "gaussearch_index_reload_failures", "New generations refused.", registry=registry
        )
        # prometheus_client looks labels up behind a lock, which takes longer than counting.
        self._by_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one request and the time it took."""
        key = (route, method, status)
        if key not in self._by_request:
            self._by_request[key] = (self.requests.labels(route, method, str(status)), self.seconds.labels(route))
        requests, durations = self._by_request[key]
        requests.inc()
        durations.observe(seconds)

    def batch(self, rows: int, documents: int, seconds: float) -> None:
        """Counts one search of `rows` queries over `documents` documents."""
        self.batch_rows.observe(rows)
        self.search_seconds.observe(seconds)
        self.scanned.inc(rows * documents)

    def encoded(self, texts: int, seconds: float) -> None:
        """Counts texts that were encoded together."""
        self.encoded_texts.observe(texts)
        self.encode_seconds.observe(seconds)

    def write(self, requests: int, documents: int, seconds: float) -> None:
        """Counts one publication."""
        self.writes_together.observe(requests)
        self.write_seconds.observe(seconds)
        self.written.inc(documents)

    def render(self) -> bytes:
        """What GET /metrics answers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
