"""One loaded version of a model.

It is loaded and run by TensorFlow's session loader, as in TensorFlow Serving: what this server accepts, TensorFlow
Serving loads too, and a prepared session call takes about half the time of a restored ``tf.function`` in Python.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the text ops, which TensorFlow Serving links in)
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from q2s_tf.serving import tensor_proto
from q2s_tf.serving.serving_error import ServingError
from q2s_tf.serving.warmup import WARMUP_FILE

DEFAULT_SIGNATURE = "serving_default"
_PREDICT_METHOD = "tensorflow/serving/predict"
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_OP_PACKAGES = {"Scann>": "scann"}


class InputSpec(NamedTuple):
    """An input of a signature: in ``shape`` None is any size, and a ``shape`` of None is any rank."""

    key: str
    dtype: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        """The form in error messages: ``string [?]``."""
        sizes = "any shape" if self.shape is None else str(["?" if size is None else size for size in self.shape])
        return f"{tensor_proto.dtype_name(self.dtype)} {sizes}".replace("'", "")

    def accepts(self, shape: list[int]) -> bool:
        """Whether a tensor of this shape may be fed."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(own in (None, n) for own, n in zip(self.shape, shape, strict=True))


class Signature:
    """One signature of a loaded version; checks the inputs and runs the graph.

    Attributes:
        name: Its key in the saved model.
        inputs: By name, sorted.
        outputs: The names, sorted.
    """

    def __init__(self, name: str, definition: meta_graph_pb2.SignatureDef, session: tf.compat.v1.Session) -> None:
        """Prepares the session call, so that a request looks up no tensor names."""
        self.name = name
        self.inputs = {
            key: InputSpec(key, info.dtype, tensor_proto.static_shape(info.tensor_shape))
            for key, info in sorted(definition.inputs.items())
        }
        self.outputs = sorted(definition.outputs)
        self._batched = [key for key, spec in self.inputs.items() if spec.shape and spec.shape[0] is None]
        options = config_pb2.CallableOptions(
            feed=[definition.inputs[key].name for key in self.inputs],
            fetch=[definition.outputs[key].name for key in self.outputs],
        )
        # Run the ops in the thread of the request: no hand-over to a pool, and requests do not queue for its threads.
        options.run_options.inter_op_thread_pool = -1
        # The public `make_callable` falls back to the slow `Session.run` as soon as a tensor is fed.
        self._call = session._make_callable_from_options(options)

    def run(self, tensors: Mapping[str, tensor_pb2.TensorProto], max_rows: int | None = None) -> dict[str, np.ndarray]:
        """Every output of the signature.

        Raises:
            ServingError: INVALID_ARGUMENT if the inputs do not match the signature or each other, or have more rows
                than ``max_rows``; otherwise the error of the graph.
        """
        if len(tensors) != len(self.inputs) or any(key not in tensors for key in self.inputs):
            raise self._wrong_keys(tensors)
        arrays = {key: self._decode(spec, tensors[key]) for key, spec in self.inputs.items()}
        self._check_rows({key: len(arrays[key]) for key in self._batched}, max_rows)
        try:
            values = self._call(*arrays.values())
        except tf.errors.OpError as error:
            message = f'signature "{self.name}": {" ".join(error.message.split())}'
            raise ServingError(_STATUS_CODES.get(error.error_code, grpc.StatusCode.INTERNAL), message) from error
        return {key: np.asarray(value) for key, value in zip(self.outputs, values, strict=True)}

    def _decode(self, spec: InputSpec, tensor: tensor_pb2.TensorProto) -> np.ndarray:
        shape = [dim.size for dim in tensor.tensor_shape.dim]  # checked first, so that only valid tensors are decoded
        if tensor.dtype != spec.dtype or not spec.accepts(shape):
            dtype = tensor_proto.dtype_name(tensor.dtype)
            raise self._invalid(f'input "{spec.key}" must be {spec}, got {dtype} {shape}')
        try:
            return tensor_proto.decode(tensor)
        except ValueError as error:
            raise self._invalid(f'input "{spec.key}": {error}') from error

    def _check_rows(self, rows: dict[str, int], max_rows: int | None) -> None:
        """The inputs whose first dimension is unknown are columns of one batch."""
        sizes = set(rows.values())
        if len(sizes) > 1:
            received = ", ".join(f'"{key}" has {count}' for key, count in rows.items())
            raise self._invalid(f"all inputs must have the same number of rows: {received}")
        if max_rows is not None and sizes and max(sizes) > max_rows:
            raise self._invalid(f"a batch may have at most {max_rows} rows, got {max(sizes)}; send smaller batches")

    def _wrong_keys(self, keys: Iterable[str]) -> ServingError:
        received = set(keys)
        problems = [f'input "{key}" ({spec}) is missing' for key, spec in self.inputs.items() if key not in received]
        problems += [f'input "{key}" is unknown' for key in sorted(received - set(self.inputs))]
        return self._invalid(f"{'; '.join(problems)}; the inputs are {', '.join(self.inputs)}")

    def _invalid(self, message: str) -> ServingError:
        return ServingError(grpc.StatusCode.INVALID_ARGUMENT, f'signature "{self.name}": {message}')


class Servable:
    """A loaded version of a model.

    Attributes:
        name: The name of the model.
        version: The number of the version.
        loading: A unique object for each time that a version is loaded.
        signature_defs: All signatures of the saved model by name.
        signatures: The signatures for Predict by name.
    """

    def __init__(self, name: str, version: int, folder: Path) -> None:
        """Loads the version in ``folder`` and sends it the requests of its warm-up file, if it has one.

        The session is open as long as this object exists, so a request completes even if the version is replaced.

        Raises:
            Exception: TensorFlow cannot load the version.
            ServingError: A warm-up request failed.
            ImportError: The model needs ops of a package that is not installed.
        """
        self.name = name
        self.version = version
        self.loading = object()
        _import_ops(folder)
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
        self.signature_defs = dict(meta_graph.signature_def)
        self.signatures = {
            key: Signature(key, definition, self._session)
            for key, definition in self.signature_defs.items()
            if definition.method_name == _PREDICT_METHOD
        }
        for request in _warmup_requests(folder / WARMUP_FILE):
            self.predict(request)

    def close(self) -> None:
        """Closes the session. Running requests fail with CANCELLED, and no further requests are possible."""
        self._session.close()

    def signature(self, name: str) -> Signature:
        """A signature by name; ``""`` is the default signature.

        Raises:
            ServingError: NOT_FOUND if there is no such signature.
        """
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            raise ServingError(
                grpc.StatusCode.NOT_FOUND,
                f'{self.name} {self.version} has no signature "{name or DEFAULT_SIGNATURE}"; '
                f"it has {', '.join(sorted(self.signatures))}",
            )
        return signature

    def predict(self, request: predict_pb2.PredictRequest, max_rows: int | None = None) -> predict_pb2.PredictResponse:
        """The response to a request; does not check that the request names this model and version.

        Raises:
            ServingError: NOT_FOUND for an unknown signature, INVALID_ARGUMENT for wrong inputs, an unknown name in
                ``output_filter`` or more than ``max_rows`` rows; otherwise the error of the graph.
        """
        signature = self.signature(request.model_spec.signature_name)
        for name in request.output_filter:
            if name not in signature.outputs:
                raise ServingError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f'output_filter: signature "{signature.name}" has no output "{name}"; '
                    f"it has {', '.join(signature.outputs)}",
                )
        arrays = signature.run(request.inputs, max_rows)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = signature.name
        for name in request.output_filter or signature.outputs:
            response.outputs[name].CopyFrom(tensor_proto.encode(arrays[name]))
        return response


def _import_ops(folder: Path) -> None:
    """Imports the packages that register the custom ops of a saved model, which TensorFlow needs to load it."""
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    ops = {op.name for meta_graph in model.meta_graphs for op in meta_graph.meta_info_def.stripped_op_list.op}
    for prefix, package in _OP_PACKAGES.items():
        if any(op.startswith(prefix) for op in ops):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ImportError(
                    f"the model has {prefix} ops, and {package} is not installed; pip install {package}"
                ) from error


def _warmup_requests(path: Path) -> Iterator[predict_pb2.PredictRequest]:
    """The Predict requests of a warm-up file; none if there is no file.

    Raises:
        ValueError: The file has a record of another kind.
    """
    if not path.exists():
        return
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") != "predict_log":
            raise ValueError(f"{path.name} may have predict_log records only, got {log.WhichOneof('log_type')}")
        yield log.predict_log.request
