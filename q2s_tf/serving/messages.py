"""TensorFlow Serving's messages from and to Python values, for the client.

Importing this module imports TensorFlow (about 5 s): the messages of ``tensorflow-serving-api`` are built on the ones
that live inside the ``tensorflow`` package, and Python imports a package before its modules.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from q2s_tf.errors import InputError
from q2s_tf.serving import tensor_proto

Version = int | str
"""A version by its number, or by its label."""

FILTER_PREFIX = "filter_"
"""Of the inputs that a retriever filters by; the rest of the name is the column of the documents."""


class Matches(NamedTuple):
    """The best documents of each query, best first: ``document_ids: str[B, k]``, ``scores: float[B, k]``.

    Where there are fewer than k (a small index, or scores under ``min_score``) the id is ``""`` and the score -1.
    ``version`` is that of the retriever.
    """

    document_ids: np.ndarray
    scores: np.ndarray
    version: int


class Embeddings(NamedTuple):
    """What a tower gives: ``embedding: float[B, D]`` of unit length and ``channel_weights: float[B, N]``.

    All rows are of one ``version`` of the tower: vectors of two versions cannot be compared.
    """

    embedding: np.ndarray
    channel_weights: np.ndarray
    version: int


class VersionStatus(NamedTuple):
    """A version of a model, its state (``AVAILABLE``, ``LOADING``, ``END``, …) and why it was refused, if it was."""

    version: int
    state: str
    error: str


class TensorInfo(NamedTuple):
    """One input or output of a signature; ``shape`` has None where any size will do, and is None for any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


class SignatureInfo(NamedTuple):
    """The inputs and outputs of a signature by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    @property
    def filters(self) -> list[str]:
        """The columns that the signature filters by."""
        return [name.removeprefix(FILTER_PREFIX) for name in self.inputs if name.startswith(FILTER_PREFIX)]


def model_spec(model: str, version: Version | None = None) -> model_pb2.ModelSpec:
    """Names a model: its newest version, or the one with this number or label."""
    spec = model_pb2.ModelSpec(name=model)
    if isinstance(version, str):
        spec.version_label = version
    elif version is not None:
        spec.version.value = version
    return spec


def predict_request(
    model: str, inputs: Mapping[str, ArrayLike], signature: str, version: Version | None
) -> predict_pb2.PredictRequest:
    """A request for one signature.

    Raises:
        InputError: An input is no array of numbers, booleans or strings.
    """
    request = predict_pb2.PredictRequest(model_spec=model_spec(model, version))
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        try:
            request.inputs[key].CopyFrom(tensor_proto.encode(_to_array(value)))
        except ValueError as error:
            raise InputError(f'input "{key}" cannot be sent: {error}') from error
    return request


def read_outputs(response: predict_pb2.PredictResponse) -> dict[str, np.ndarray]:
    """The outputs by name; strings are object arrays of ``bytes``."""
    return {key: tensor_proto.decode(value) for key, value in response.outputs.items()}


def read_statuses(response: get_model_status_pb2.GetModelStatusResponse) -> list[VersionStatus]:
    """The versions of a model, newest first."""
    name = get_model_status_pb2.ModelVersionStatus.State.Name
    states = response.model_version_status
    return sorted((VersionStatus(s.version, name(s.state), s.status.error_message) for s in states), reverse=True)


def read_signatures(response: get_model_metadata_pb2.GetModelMetadataResponse) -> dict[str, SignatureInfo]:
    """The signatures by name."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        key: SignatureInfo(_tensor_infos(definition.inputs), _tensor_infos(definition.outputs))
        for key, definition in signatures.signature_def.items()
        if definition.method_name  # an initialiser has none, and cannot be called
    }


def to_strings(name: str, values: Sequence[str]) -> np.ndarray:
    """Texts ``[B]`` as they are sent.

    Raises:
        InputError: One text came, and no list.
    """
    if isinstance(values, str | bytes):
        raise InputError(f"{name} must be a list of texts, one per row, and the text {values!r} came; wrap it in []")
    array = np.empty(len(values), object)
    array[:] = values
    return array


def to_text(array: np.ndarray) -> np.ndarray:
    """Document ids are text; what is no UTF-8 is kept readable rather than refused."""
    texts = np.empty(array.size, object)
    texts[:] = [value.decode("utf-8", errors="backslashreplace") for value in array.ravel()]
    return texts.reshape(array.shape)


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    array = np.asarray(value)
    if array.dtype.kind in "SU":  # NumPy's own strings drop NULs at the end; objects keep them
        return np.asarray(value, dtype=object)
    narrow = {"i": np.int32, "f": np.float32}.get(array.dtype.kind)
    return array.astype(narrow) if narrow else array


def _tensor_infos(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {
        key: TensorInfo(
            tensor_proto.dtype_name(info.dtype),
            None
            if info.tensor_shape.unknown_rank
            else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim),
        )
        for key, info in sorted(infos.items())
    }
