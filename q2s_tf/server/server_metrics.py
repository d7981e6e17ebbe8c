"""The metrics of the embedded server for Prometheus, in the default registry of its client, which adds `process_*`.

They are `q2s_request_seconds`, `q2s_cache_requests_total`, `q2s_version_loaded` and `q2s_version_refused`. `code` is
the name of the gRPC code, also over REST and for success (`OK`). The label of an unknown model or signature is `""`, so
that requests for random names do not add time series.
"""

from prometheus_client import Counter, Gauge, Histogram

request_seconds = Histogram(
    "q2s_request_seconds",
    "Predict requests and their duration in the server, with the wait to run.",
    ["model", "signature", "entrypoint", "code"],
    buckets=(  # around 1.5 ms they resolve 0.1 ms
        *(0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.0006, 0.0008, 0.001, 0.0012, 0.0014, 0.0015, 0.0016, 0.0018, 0.002),
        *(0.0025, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    ),
)
cache_requests = Counter("q2s_cache_requests", "Look-ups in the answer cache: hit or miss.", ["model", "result"])
version_loaded = Gauge("q2s_version_loaded", "1 for a version that is served, or 0.", ["model", "version"])
version_refused = Gauge("q2s_version_refused", "1 for a version that failed to load, or 0.", ["model", "version"])
