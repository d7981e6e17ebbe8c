"""The optional dependencies of q2s_tf: which extra of setup.py installs which module."""

from importlib.util import find_spec

from q2s_tf.errors import InputError

EXTRAS = {
    "benchmarks": ("onnx", "onnxruntime", "pandas"),
    "milvus": ("milvus_lite", "minio", "pymilvus"),
    "peers": ("sentence_transformers", "torch"),
    "pretrained": ("safetensors",),
    "report": ("jinja2", "plotly"),
    "scann": ("scann",),
    "server": ("cachetools", "h11", "jinja2", "prometheus_client", "starlette", "uvicorn"),
    "spark": ("pyspark",),
}
"""The modules that each extra brings, by its name."""


def missing(extra: str) -> str | None:
    """One line that names a module of the extra that is not installed and how to install it; None if all are."""
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            return f"the Python package {module} is not installed: pip install 'q2s_tf[{extra}]'"
    return None


def require(extra: str) -> None:
    """Raises `InputError` if a module of the extra is not installed."""
    if message := missing(extra):
        raise InputError(message)


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """The line of `missing` for a failed import; None if the module belongs to no extra."""
    module = (error.name or "").partition(".")[0]
    return next(filter(None, (missing(extra) for extra, modules in EXTRAS.items() if module in modules)), None)
