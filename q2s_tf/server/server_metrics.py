"""The metrics of the embedded server for Prometheus.

| metric | labels | value |
|---|---|---|
| `q2s_request_seconds` (histogram) | `model`, `signature`, `entrypoint` (`GRPC`, `REST`), `code` | Predict requests and their duration, without the wait for a thread |
| `q2s_cache_requests_total` | `model`, `result` (`hit`, `miss`) | look-ups in the answer cache, if it is enabled |
| `q2s_cache_bytes` | | size of the answer cache |
| `q2s_version_loaded` | `model`, `version` | 1 for each version that is served |
| `q2s_version_refused` | `model`, `version` | 1 for each version on disk that failed to load |
| `process_*` | | memory, CPU and open files of the process |

`code` is the name of the gRPC code, also over REST and for success (`OK`). The label of an unknown model or signature is
`""`, so that requests for random names do not add time series.
"""  # noqa: E501

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from q2s_tf.server.answer_cache import AnswerCache

if TYPE_CHECKING:
    from q2s_tf.server.model_manager import ModelManager

BUCKETS_SECONDS = tuple(
    milliseconds / 1000
    for milliseconds in (
        *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7.5),
        *(10, 15, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000),
    )
)
"""Bounds of the histogram; around 1.5 ms they resolve 0.1 ms."""


class ServerMetrics:
    """The metrics of one server.

    Attributes:
        registry: Collects all metrics.
        request_seconds: Labels: model, signature, entrypoint and code.
        cache_requests: Labels: model and result.
    """

    def __init__(self, models: "ModelManager", cache: AnswerCache | None) -> None:
        self.registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "q2s_request_seconds",
            "Predict requests and their duration in the server.",
            ["model", "signature", "entrypoint", "code"],
            registry=self.registry,
            buckets=BUCKETS_SECONDS,
        )
        self.cache_requests = Counter(
            "q2s_cache_requests", "Look-ups in the answer cache.", ["model", "result"], registry=self.registry
        )
        if cache is not None:
            size = Gauge("q2s_cache_bytes", "Size of the answer cache.", registry=self.registry)
            size.set_function(cache.size_bytes)
        self.registry.register(_VersionCollector(models))
        ProcessCollector(registry=self.registry)


class _VersionCollector(Collector):
    """Reads the versions when the metrics are read, because their labels come and go."""

    def __init__(self, models: "ModelManager") -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, help, versions in (
            ("q2s_version_loaded", "Versions that are served.", self._models.serving()),
            ("q2s_version_refused", "Versions that failed to load.", self._models.refused()),
        ):
            family = GaugeMetricFamily(name, help, labels=["model", "version"])
            for model, numbers in versions.items():
                for number in numbers:
                    family.add_metric([model, str(number)], 1.0)
            yield family
