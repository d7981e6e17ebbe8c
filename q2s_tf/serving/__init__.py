"""Export of the servables, and a client for TensorFlow Serving's gRPC API, `q2s_tf.serving.client.Client`."""

from q2s_tf.serving.connection import read_credentials
from q2s_tf.serving.serving_error import ServingError

__all__ = ["DEFAULT_EFFORT", "MAX_RESULTS", "ServingError", "read_credentials"]

DEFAULT_EFFORT = 0
"""The `effort` that stands for the default of the index."""
DEFAULT_LEXICAL_WEIGHT = -1.0
"""The `lexical_weight` that stands for the one that the export chose."""
MAX_RESULTS = 100_000
"""Results of one request at most, k times its queries."""
