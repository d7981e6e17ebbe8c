"""Warm-up files: requests that a server runs before it reports a version as available."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
BATCH_SIZES = (1, 4)
EXAMPLES = {
    "query": "red sofa",
    "title": "red sofa",
    "description": "a red sofa",
    "k": 10,
    "effort": 1,
    "min_score": -1.0,
    "lexical_weight": -1.0,
}


def write_warmup(servable: str, version_folder: Path, signatures: dict[str, Any]) -> None:
    """Write a request of one row and one of four rows for every signature of a saved model.

    A server that lacks an op of the graph fails on these requests when it loads the model, not at the first request of
    a user. `signatures` are the graph functions by name.
    """
    path = version_folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, function in signatures.items():
            for batch_size in BATCH_SIZES:
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name, request.model_spec.signature_name = servable, name
                for spec in function.input_signature:
                    request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(_example(spec, batch_size)))
                writer.write(log.SerializeToString())


def _example(spec: tf.TensorSpec, batch_size: int) -> np.ndarray:
    shape = [batch_size if axis == 0 else size or 1 for axis, size in enumerate(spec.shape)]
    value = EXAMPLES.get(spec.name, "" if spec.dtype == tf.string else 1.0)
    return np.full(shape, value, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
