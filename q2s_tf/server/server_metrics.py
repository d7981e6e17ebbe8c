"""The metrics of the embedded server for Prometheus.

`q2s_request_seconds` is a histogram of Predict requests, with their wait to run, by `model`, `signature`, `entrypoint`
(`GRPC`, `REST`) and `code`, the name of the gRPC code, also over REST and for success (`OK`). The label of an unknown
model or signature is `""`, so that requests for random names do not add time series. `q2s_cache_requests_total` counts
look-ups in the answer cache by `model` and `result` (`hit`, `miss`), and `q2s_cache_bytes` is its size.
`q2s_version_loaded` and `q2s_version_refused` are 1 for each `model` and `version` that is served or failed to load.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from q2s_tf.server.model_manager import ModelManager

BUCKETS_SECONDS = (  # around 1.5 ms they resolve 0.1 ms
    *(0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.0006, 0.0008, 0.001, 0.0012, 0.0014, 0.0015, 0.0016, 0.0018, 0.002),
    *(0.0025, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class ServerMetrics(Collector):
    """The metrics of one server, as attributes named like them, and the registry that collects all of them."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models
        self.registry = registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "q2s_request_seconds",
            "Predict requests and their duration in the server.",
            ["model", "signature", "entrypoint", "code"],
            registry=registry,
            buckets=BUCKETS_SECONDS,
        )
        lookups = "Look-ups in the answer cache."
        self.cache_requests = Counter("q2s_cache_requests", lookups, ["model", "result"], registry=registry)
        self.cache_bytes = Gauge("q2s_cache_bytes", "Size of the answer cache.", registry=registry)
        ProcessCollector(registry=registry)
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics of the versions, whose labels come and go; called when the metrics are read."""
        for name, help, versions in (
            ("q2s_version_loaded", "Versions that are served.", self._models.serving()),
            ("q2s_version_refused", "Versions that failed to load.", self._models.refused()),
        ):
            family = GaugeMetricFamily(name, help, labels=["model", "version"])
            for model, number in ((model, number) for model, numbers in versions.items() for number in numbers):
                family.add_metric([model, str(number)], 1.0)
            yield family
