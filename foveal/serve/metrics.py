"""Counters of the service in the format of Prometheus.

Example:
    >>> metrics = Metrics()
    >>> metrics.batch(4, 0.2)
    >>> "foveal_images_total 4.0" in metrics.text().decode()
    True
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROUTES = ("/v1/classify/stream", "/v1/classify", "/v1/tile", "/v1/look", "/v1/images", "/v1/image", "/v1/model")


class Metrics:
    """Counters of one service.

    Attributes:
        accepted: classifications that are accepted and not yet answered.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._responses = Counter(
            "foveal_responses", "Responses by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "foveal_response_seconds",
            "Seconds to the start of a response",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._images = Counter("foveal_images", "Images classified", registry=self._registry)
        self._batches = Histogram(
            "foveal_batch_images", "Images per batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry
        )
        self._busy = Counter(
            "foveal_classifying_seconds", "Seconds of the thread that classifies", registry=self._registry
        )
        self.accepted = Gauge(
            "foveal_accepted", "Classifications accepted and not yet answered", registry=self._registry
        )

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self._images.inc(size)
        self._batches.observe(size)
        self._busy.inc(seconds)

    def watch(self, path: str) -> Callable[[int], None]:
        """A function that counts the response to a request from now on, called with its status."""
        start = time.monotonic()
        route = next((route for route in _ROUTES if path.startswith(route)), "other")

        def count(status: int) -> None:
            self._responses.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(time.monotonic() - start)

        return count

    def text(self) -> bytes:
        """All counters."""
        return generate_latest(self._registry)
