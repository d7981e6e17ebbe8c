"""Export of the servables, and a client for TensorFlow Serving's gRPC API.

The names are imported at their first use, because `Client` imports TensorFlow and not every user of this package needs
it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2s_tf.serving.client import Client
    from q2s_tf.serving.connection import read_credentials
    from q2s_tf.serving.serving_error import ServingError

__all__ = ["DEFAULT_EFFORT", "Client", "ServingError", "read_credentials"]

DEFAULT_EFFORT = 0
"""The `effort` that stands for the default of the index."""
DEFAULT_LEXICAL_WEIGHT = -1.0
"""The `lexical_weight` that stands for the one that the export chose."""
MAX_RESULTS = 2**20
"""Results of one request at most, k times its queries."""

_MODULES = {"Client": "client", "ServingError": "serving_error", "read_credentials": "connection"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
