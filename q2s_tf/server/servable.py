"""One version of one model, loaded and ready to answer.

It is loaded and run the way TensorFlow Serving does it, by the session loader: what this server accepts, that one
loads too, and a prepared session call costs about half of what a restored ``tf.function`` costs from Python.
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


class Input(NamedTuple):
    """What a signature wants for one input; ``shape`` has None where any size will do, and is None for any rank."""

    key: str
    dtype: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        """As error messages give it: ``string [?]``."""
        sizes = "any shape" if self.shape is None else str(["?" if size is None else size for size in self.shape])
        return f"{tensor_proto.dtype_name(self.dtype)} {sizes}".replace("'", "")


class Signature:
    """One signature of a loaded version: checks the inputs, runs the graph once."""

    def __init__(self, name: str, definition: meta_graph_pb2.SignatureDef, session: tf.compat.v1.Session) -> None:
        """Prepares the call, so that a request pays for no look-up of names."""
        self.name = name
        self.inputs = {key: _input(key, info) for key, info in sorted(definition.inputs.items())}
        self.outputs = sorted(definition.outputs)
        self._batched = [key for key, wanted in self.inputs.items() if wanted.shape and wanted.shape[0] is None]
        options = config_pb2.CallableOptions(
            feed=[definition.inputs[key].name for key in self.inputs],
            fetch=[definition.outputs[key].name for key in self.outputs],
        )
        # The ops run in the thread of the request: no hand-over to a pool, and requests do not queue behind each other.
        options.run_options.inter_op_thread_pool = -1
        # The public `make_callable` goes the slow way of `Session.run` as soon as there is something to feed.
        self._call = session._make_callable_from_options(options)

    def run(self, tensors: Mapping[str, tensor_pb2.TensorProto], max_rows: int | None = None) -> dict[str, np.ndarray]:
        """Every output of the signature for the given inputs.

        Raises:
            ServingError: INVALID_ARGUMENT if the inputs do not fit the signature or each other, or have more rows than
                ``max_rows``; else what the graph reported.
        """
        if len(tensors) != len(self.inputs) or any(key not in tensors for key in self.inputs):
            raise self._wrong_keys(tensors)
        arrays = {key: self._read(wanted, tensors[key]) for key, wanted in self.inputs.items()}
        self._check_rows({key: len(arrays[key]) for key in self._batched}, max_rows)
        try:
            values = self._call(*arrays.values())
        except tf.errors.OpError as error:
            message = f'signature "{self.name}": {" ".join(error.message.split())}'
            raise ServingError(_STATUS_CODES.get(error.error_code, grpc.StatusCode.INTERNAL), message) from error
        return {key: np.asarray(value) for key, value in zip(self.outputs, values, strict=True)}

    def _read(self, wanted: Input, tensor: tensor_pb2.TensorProto) -> np.ndarray:
        # Against the proto, before a byte is decoded: what does not fit is never unpacked.
        came = [dim.size for dim in tensor.tensor_shape.dim]
        if tensor.dtype != wanted.dtype or not _fits(came, wanted.shape):
            raise self._invalid(
                f'input "{wanted.key}" must be {wanted}, and {tensor_proto.dtype_name(tensor.dtype)} {came} came'
            )
        try:
            return tensor_proto.decode(tensor)
        except ValueError as error:
            raise self._invalid(f'input "{wanted.key}": {error}') from error

    def _check_rows(self, rows: dict[str, int], max_rows: int | None) -> None:
        """The inputs whose first size is open are columns of one batch."""
        sizes = set(rows.values())
        if len(sizes) > 1:
            came = ", ".join(f'"{key}" has {count}' for key, count in rows.items())
            raise self._invalid(f"the inputs must have as many rows each, and {came}")
        if max_rows is not None and sizes and max(sizes) > max_rows:
            raise self._invalid(f"a batch may have at most {max_rows} rows, and {max(sizes)} came; send smaller ones")

    def _wrong_keys(self, tensors: Iterable[str]) -> ServingError:
        came = set(tensors)
        problems = [f'input "{key}" ({wanted}) is missing' for key, wanted in self.inputs.items() if key not in came]
        problems += [f'input "{key}" is unknown' for key in sorted(came - set(self.inputs))]
        return self._invalid(f"{'; '.join(problems)}; it takes {', '.join(self.inputs)}")

    def _invalid(self, message: str) -> ServingError:
        return ServingError(grpc.StatusCode.INVALID_ARGUMENT, f'signature "{self.name}": {message}')


class Servable:
    """A loaded version of a model.

    Attributes:
        name: The model.
        version: Its version.
        loading: Another object for each loading, also of the same version.
        signature_defs: The signatures as the export wrote them, by name.
        signatures: Those of them that can be called.
    """

    def __init__(self, name: str, version: int, folder: Path) -> None:
        """Loads the version in ``folder`` and runs its warm-up file, if it has one.

        The session lives as long as this object: a request that holds it finishes, whatever was loaded meanwhile.

        Raises:
            Exception: Whatever TensorFlow raises for a version that it cannot load.
            ServingError: A warm-up request failed.
            ImportError: The model needs ops of a package that is not installed.
        """
        self.name = name
        self.version = version
        self.loading = object()
        _import_ops(folder)
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        graph = tf.Graph()
        session = tf.compat.v1.Session(graph=graph, config=config)
        self._session = session
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))
        self.signature_defs = dict(meta_graph.signature_def)
        self.signatures = {
            key: Signature(key, definition, session)
            for key, definition in self.signature_defs.items()
            if definition.method_name == _PREDICT_METHOD
        }
        for request in _warmup_requests(folder / WARMUP_FILE):
            self.predict(request)

    def close(self) -> None:
        """Ends the session: what it still runs is broken off with CANCELLED, and it takes no more requests."""
        self._session.close()

    def signature(self, name: str) -> Signature:
        """A signature by name, ``""`` for the default.

        Raises:
            ServingError: NOT_FOUND if there is none.
        """
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        if found is None:
            raise ServingError(
                grpc.StatusCode.NOT_FOUND,
                f'{self.name} {self.version} has no signature "{name or DEFAULT_SIGNATURE}"; '
                f"it has {', '.join(sorted(self.signatures))}",
            )
        return found

    def predict(self, request: predict_pb2.PredictRequest, max_rows: int | None = None) -> predict_pb2.PredictResponse:
        """Answers one request; its model and version are taken to be this one.

        Raises:
            ServingError: NOT_FOUND for an unknown signature, INVALID_ARGUMENT for inputs or an ``output_filter`` that
                do not fit it or for more than ``max_rows`` rows, else what the graph reported.
        """
        signature = self.signature(request.model_spec.signature_name)
        for name in request.output_filter:
            if name not in signature.outputs:
                raise ServingError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f'signature "{signature.name}" has no output "{name}" to filter by; '
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


def _input(key: str, info: meta_graph_pb2.TensorInfo) -> Input:
    if info.tensor_shape.unknown_rank:
        return Input(key, info.dtype, None)
    return Input(key, info.dtype, tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim))


def _fits(came: list[int], wanted: tuple[int | None, ...] | None) -> bool:
    if wanted is None:
        return True
    return len(came) == len(wanted) and all(w is None or w == c for c, w in zip(came, wanted, strict=True))


def _import_ops(folder: Path) -> None:
    """Imports the packages whose ops the saved model names: TensorFlow must know an op before it can load it."""
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    ops = {op.name for meta_graph in model.meta_graphs for op in meta_graph.meta_info_def.stripped_op_list.op}
    for prefix, package in _OP_PACKAGES.items():
        if any(op.startswith(prefix) for op in ops):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ImportError(f"it has {prefix} ops, and {package} is not there; pip install {package}") from error


def _warmup_requests(path: Path) -> Iterator[predict_pb2.PredictRequest]:
    """The Predict requests of a warm-up file, none if there is no file.

    Raises:
        ValueError: It holds a record of another kind.
    """
    if not path.exists():
        return
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") != "predict_log":
            raise ValueError(f"{path.name} may hold predict_log records only, and {log.WhichOneof('log_type')} came")
        yield log.predict_log.request
