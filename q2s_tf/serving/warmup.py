"""Warm-up files: requests that a server runs before it calls a version available."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
BATCHES = (1, 4)
EXAMPLES = {
    "query": "red sofa",
    "title": "red sofa",
    "description": "a red sofa",
    "k": 10,
    "effort": 1,
    "min_score": -1.0,
}


def write_warmup(servable: str, version_folder: Path, signatures: dict[str, Any]) -> None:
    """Writes a request of one and one of four rows for every signature of a saved model.

    A server that lacks an op of the graph fails on them, and so at load and not at the first user's request.

    Args:
        servable: its name.
        version_folder: the saved model's folder.
        signatures: the graph functions by name.
    """
    path = version_folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, function in signatures.items():
            for rows in BATCHES:
                writer.write(_log(servable, name, function.input_signature, rows).SerializeToString())


def _log(servable: str, signature: str, specs: Any, rows: int) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = servable
    request.model_spec.signature_name = signature
    for spec in specs:
        request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(_example(spec, rows)))
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))


def _example(spec: tf.TensorSpec, rows: int) -> np.ndarray:
    dimensions = [rows if place == 0 else size or 1 for place, size in enumerate(spec.shape)]
    value = EXAMPLES.get(spec.name, "" if spec.dtype == tf.string else 1.0)
    return np.full(dimensions, value, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
