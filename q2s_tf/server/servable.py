"""One loaded version of a model.

It is loaded and run by TensorFlow's session loader, as in TensorFlow Serving: what this server accepts, TensorFlow
Serving loads too, and a prepared session call takes about half the time of a restored ``tf.function`` in Python.
"""

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the text ops, which TensorFlow Serving links in)
from grpc import StatusCode
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from q2s_tf import extras
from q2s_tf.server.server_config import RequestLimits
from q2s_tf.serving import tensor_proto
from q2s_tf.serving.serving_error import ServingError
from q2s_tf.serving.warmup import WARMUP_FILE

DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
_STATUS_CODES = {code.value[0]: code for code in StatusCode}


class InputSpec(NamedTuple):
    """An input of a signature: in ``shape`` None is any size, and a ``shape`` of None is any rank."""

    key: str
    dtype: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "any shape" if self.shape is None else str(["?" if size is None else size for size in self.shape])
        return f"{tensor_proto.dtype_name(self.dtype)} {sizes}".replace("'", "")

    def decode(self, tensor: tensor_pb2.TensorProto, max_bytes: int) -> np.ndarray:
        """The array of a tensor; raises `ValueError` if it does not fit or is not finite."""
        try:
            array = tensor_proto.decode(tensor, max_bytes) if tensor.dtype == self.dtype else None
        except ValueError as error:
            raise ValueError(f'input "{self.key}": {error}') from error
        if array is None or not self._accepts(array.shape):
            received = f"{tensor_proto.dtype_name(tensor.dtype)} {[dim.size for dim in tensor.tensor_shape.dim]}"
            raise ValueError(f'input "{self.key}" must be {self}, got {received}')
        # A scalar may be infinite, as min_score can be.
        if array.dtype.kind == "f" and (not np.isfinite(array).all() if array.ndim else np.isnan(array)):
            raise ValueError(f'input "{self.key}" must be finite, got NaN or Infinity')
        return array

    def _accepts(self, shape: tuple[int, ...]) -> bool:
        sizes = shape if self.shape is None else self.shape
        return len(shape) == len(sizes) and all(own in (None, n) for own, n in zip(sizes, shape, strict=True))


class Signature:
    """One signature of a loaded version, with sorted ``inputs`` and ``outputs``; checks inputs and runs the graph."""

    def __init__(self, name: str, definition: meta_graph_pb2.SignatureDef, session: tf.compat.v1.Session) -> None:
        """Prepares the session call, so that a request looks up no tensor names."""
        self.name = name
        self.inputs = {
            key: InputSpec(key, info.dtype, tensor_proto.static_shape(info.tensor_shape))
            for key, info in sorted(definition.inputs.items())
        }
        self.outputs = sorted(definition.outputs)
        self.defaults = {key: tf.make_ndarray(value) for key, value in definition.defaults.items()}
        self._batched = [key for key, spec in self.inputs.items() if spec.shape and spec.shape[0] is None]
        self._has_k = "k" in self.inputs and self.inputs["k"].shape == ()
        options = config_pb2.CallableOptions(
            feed=[definition.inputs[key].name for key in self.inputs],
            fetch=[definition.outputs[key].name for key in self.outputs],
        )
        # Run the ops in the thread of the request: no hand-over to a pool, and requests do not queue for its threads.
        options.run_options.inter_op_thread_pool = -1
        # The public `make_callable` falls back to the slow `Session.run` as soon as a tensor is fed.
        self._call = session._make_callable_from_options(options)

    def run(
        self, tensors: Mapping[str, tensor_pb2.TensorProto], output_filter: Collection[str], limits: RequestLimits
    ) -> dict[str, np.ndarray]:
        """The outputs of the signature; with an ``output_filter`` only those.

        Raises:
            ServingError: INVALID_ARGUMENT if the inputs do not match the signature or each other, are not finite or
                exceed the limits, or ``output_filter`` has another name; otherwise the error of the graph.
        """
        code = StatusCode.INVALID_ARGUMENT
        try:
            for name in output_filter:
                if name not in self.outputs:
                    raise ValueError(f'no output "{name}" to filter by; the outputs are {", ".join(self.outputs)}')
            values = self._call(*self._feeds(tensors, limits))
        except ValueError as error:
            problem = str(error)
        except tf.errors.OpError as error:
            code = _STATUS_CODES.get(error.error_code, StatusCode.INTERNAL)
            problem = " ".join(error.message.split())
        else:
            outputs = dict(zip(self.outputs, values, strict=True))
            return {key: np.asarray(outputs[key]) for key in output_filter or outputs}
        raise ServingError(code, f'signature "{self.name}": {problem}')

    def _feeds(self, tensors: Mapping[str, tensor_pb2.TensorProto], limits: RequestLimits) -> list[np.ndarray]:
        missing = [key for key in self.inputs if key not in tensors]
        if not self.defaults.keys() >= set(missing) or len(tensors) + len(missing) != len(self.inputs):
            problems = [f'input "{key}" ({self.inputs[key]}) is missing' for key in missing if key not in self.defaults]
            problems += [f'input "{key}" is unknown' for key in sorted(tensors) if key not in self.inputs]
            raise ValueError(f"{'; '.join(problems)}; the inputs are {', '.join(self.inputs)}")
        arrays = {
            key: spec.decode(tensors[key], limits.max_request_bytes) if key in tensors else self.defaults[key]
            for key, spec in self.inputs.items()
        }
        rows = {key: len(arrays[key]) for key in self._batched if key in tensors}  # the columns of one batch
        if len(set(rows.values())) > 1:
            received = ", ".join(f'"{key}" has {count}' for key, count in rows.items())
            raise ValueError(f"all inputs must have the same number of rows: {received}")
        count, k = next(iter(rows.values()), 0), int(arrays["k"]) if self._has_k else 0
        if count > limits.max_rows:
            raise ValueError(f"a batch may have at most {limits.max_rows} rows, got {count}; send smaller batches")
        if count * k > limits.max_results:
            raise ValueError(f"rows × k may be at most {limits.max_results}, got {count} × {k}; send fewer rows")
        return list(arrays.values())


class Servable:
    """A loaded version of a model, with ``signatures`` for Predict, by name."""

    def __init__(self, name: str, version: int, folder: Path) -> None:
        """Loads the version in ``folder`` and sends it the requests of its warm-up file, if it has one.

        The session is open as long as this object exists, so a request completes even if the version is replaced.

        Raises:
            Exception: TensorFlow cannot load the version.
            ServingError: A warm-up request failed.
            InputError: The model needs ops of a package that is not installed.
        """
        self.name = name
        self.version = version
        self.loading = object()  # another one for each time that a version is loaded
        if b"Scann>" in (folder / "saved_model.pb").read_bytes():  # TensorFlow must know these ops to load it
            extras.require("scann")
            importlib.import_module("scann")
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
        self.signature_defs = dict(meta_graph.signature_def)
        self.signatures = {
            key: Signature(key, definition, self._session)
            for key, definition in self.signature_defs.items()
            if definition.method_name == tf.saved_model.PREDICT_METHOD_NAME
        }
        warmup_file = folder / WARMUP_FILE
        for record in tf.data.TFRecordDataset(str(warmup_file)).as_numpy_iterator() if warmup_file.exists() else ():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind != "predict_log":
                raise ValueError(f"{warmup_file.name} may have predict_log records only, got {kind}")
            self.predict(log.predict_log.request)

    def close(self) -> None:
        """Closes the session. Running requests fail with CANCELLED, and no further requests are possible."""
        self._session.close()

    def signature(self, name: str) -> Signature:
        """A signature by name; ``""`` is the default. Raises a `ServingError` (NOT_FOUND) if there is none."""
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            known = ", ".join(sorted(self.signatures))
            message = f'{self.name} {self.version} has no signature "{name or DEFAULT_SIGNATURE}"; it has {known}'
            raise ServingError(StatusCode.NOT_FOUND, message)
        return signature

    def predict(self, request: PredictRequest, limits: RequestLimits = RequestLimits()) -> PredictResponse:
        """The response to a request, whatever version it names; raises what `signature` and `Signature.run` raise."""
        signature = self.signature(request.model_spec.signature_name)
        arrays = signature.run(request.inputs, request.output_filter, limits)
        response = PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = signature.name
        for name, array in arrays.items():
            response.outputs[name].CopyFrom(tensor_proto.encode(array))
        return response
