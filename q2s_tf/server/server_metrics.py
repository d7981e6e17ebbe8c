"""What the server tells Prometheus.

| metric | labels | is |
|---|---|---|
| `q2s_request_seconds` (histogram) | `model`, `signature`, `entrypoint` (`GRPC`, `REST`), `code` | Predict requests, and how long each took once a thread was free |
| `q2s_cache_requests_total` | `model`, `result` (`hit`, `miss`) | look-ups in the answer cache, if there is one |
| `q2s_cache_bytes` | | what the kept answers take |
| `q2s_version_loaded` | `model`, `version` | 1 for each version that answers |
| `q2s_version_refused` | `model`, `version` | 1 for each version on disk that did not load |
| `process_*` | | memory, CPU and open files of the process |

`code` is the gRPC code by name, `OK` among them, over REST too. A model or signature that is not there has the label
`""`: what strangers ask for does not grow the list.
"""  # noqa: E501

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

BUCKETS_SECONDS = tuple(
    milliseconds / 1000
    for milliseconds in (
        *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7.5),
        *(10, 15, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000),
    )
)
"""Bounds of the histogram: a p99 about 1.5 ms is told to 0.1 ms."""


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Nothing has been counted yet."""
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "q2s_request_seconds",
            "Predict requests and how long they took in the server.",
            ["model", "signature", "entrypoint", "code"],
            registry=self._registry,
            buckets=BUCKETS_SECONDS,
        )
        self._cache = Counter(
            "q2s_cache_requests", "Look-ups in the answer cache.", ["model", "result"], registry=self._registry
        )
        ProcessCollector(registry=self._registry)

    def observe(self, labels: tuple[str, str, str, str], seconds: float) -> None:
        """Counts a request; ``labels`` are model, signature, entrypoint and code."""
        self._requests.labels(*labels).observe(seconds)

    def count_cache(self, model: str, hit: bool) -> None:
        """Counts a look-up in the cache."""
        self._cache.labels(model, "hit" if hit else "miss").inc()

    def watch(
        self, name: str, help: str, labels: list[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """Adds a gauge whose values, by its labels, are read when somebody asks."""
        self._registry.register(_Watched(name, help, labels, read))

    def render(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(
        self, name: str, help: str, labels: list[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        self._family = (name, help)
        self._labels = labels
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(*self._family, labels=self._labels)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        yield family
