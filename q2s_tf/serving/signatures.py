"""The signatures of a served model: what they take, and the inputs of a request that fit one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from q2s_tf.errors import InputError
from q2s_tf.serving import tensor_proto

FILTER_PREFIX = "filter_"
"""Prefix of the inputs that a retriever filters by; the rest of the name is the column of the documents."""


class TensorInfo(NamedTuple):
    """An input or output of a signature. A dimension of any size is None in ``shape``; for any rank, ``shape`` is."""

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


def describe_signatures(signatures: SignatureDefMap) -> dict[str, SignatureInfo]:
    """The inputs and outputs of the signatures that can be called, by name."""

    def describe(tensors: Mapping[str, Any]) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(tensor_proto.dtype_name(info.dtype), tensor_proto.static_shape(info.tensor_shape))
            for name, info in sorted(tensors.items())
        }

    return {
        name: SignatureInfo(describe(definition.inputs), describe(definition.outputs))
        for name, definition in signatures.signature_def.items()
        if definition.method_name  # an initialiser has none and cannot be called
    }


def select_inputs(inputs: Mapping[str, Any], signature: SignatureInfo) -> dict[str, Any]:
    """The inputs that the signature has; its other filters and images get empty values.

    Raises:
        InputError: The signature lacks a filter.
    """
    count = len(next(iter(inputs.values())))
    for name in inputs:
        if name.startswith(FILTER_PREFIX) and name not in signature.inputs:
            column, columns = name.removeprefix(FILTER_PREFIX), ", ".join(signature.filters)
            known = f"was exported to filter by {columns}" if columns else "has no filters"
            remedy = "name columns when it is exported: --filter COLUMN"
            raise InputError(f'there is no filter "{column}"; the retriever {known}; {remedy}')
    defaults: dict[str, Any] = {FILTER_PREFIX + column: np.full(count, "", object) for column in signature.filters}
    images = signature.inputs.get("image_embeddings")
    if images is not None and images.shape is not None:
        defaults["image_embeddings"] = np.zeros((count, 0, images.shape[-1] or 0), np.float32)
    return defaults | {name: values for name, values in inputs.items() if name in signature.inputs}
