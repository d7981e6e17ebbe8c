"""NumPy arrays to and from TensorFlow's ``TensorProto``, for the dtypes that the servables use.

TensorFlow's own `tf.make_tensor_proto` and `tf.make_ndarray` do the same for every dtype and every Python value, and
are most of what a small request costs in a Python server; these two do only what gRPC needs.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

MAX_BYTES = 64 << 20
"""How large a decoded tensor may be: a few bytes on the wire can ask for a shape of any size."""


class _Kind(NamedTuple):
    dtype: np.dtype[Any]
    field: str
    fill: Any


_KINDS = {
    types_pb2.DT_FLOAT: _Kind(np.dtype(np.float32), "float_val", 0),
    types_pb2.DT_DOUBLE: _Kind(np.dtype(np.float64), "double_val", 0),
    types_pb2.DT_INT32: _Kind(np.dtype(np.int32), "int_val", 0),
    types_pb2.DT_INT64: _Kind(np.dtype(np.int64), "int64_val", 0),
    types_pb2.DT_BOOL: _Kind(np.dtype(np.bool_), "bool_val", False),
    types_pb2.DT_STRING: _Kind(np.dtype(object), "string_val", b""),
}
_NUMBERS = {kind.dtype: number for number, kind in _KINDS.items()}


def dtype_name(number: int) -> str:
    """The name of a ``DataType`` number as TensorFlow spells it in Python: ``float32``, ``string``."""
    if number in _KINDS and number != types_pb2.DT_STRING:
        return _KINDS[number].dtype.name
    return types_pb2.DataType.Name(number).removeprefix("DT_").lower() if number in types_pb2.DataType.values() else "?"


def decode(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The array that a ``TensorProto`` holds; strings come as an object array of ``bytes``.

    As in TensorFlow, the values are in ``tensor_content`` or in the field of their dtype; fewer values than the shape
    holds are filled up with the last one, and none at all with zeros (or ``b""``).

    Raises:
        ValueError: The dtype is none of float32, float64, int32, int64, bool and string; the shape is not fully known
            or larger than `MAX_BYTES`; or values and shape do not fit.
    """
    kind = _KINDS.get(proto.dtype)
    if kind is None:
        raise ValueError(f"dtype {dtype_name(proto.dtype)} is not supported; send one of {_supported()}")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or (shape and min(shape) < 0):
        raise ValueError(f"the shape of a tensor must be known, and {list(shape)} is not; send every dimension")
    count = math.prod(shape)
    if count * kind.dtype.itemsize > MAX_BYTES:
        raise ValueError(f"shape {list(shape)} is larger than {MAX_BYTES >> 20} MiB; send a smaller batch")
    if proto.tensor_content:
        return _from_content(proto.tensor_content, kind, shape, count)
    values = getattr(proto, kind.field)
    if len(values) > count:
        raise ValueError(f"shape {list(shape)} holds {count} values, and {len(values)} came; send as many as it holds")
    array = np.empty(count, kind.dtype)
    array[: len(values)] = values
    if len(values) < count:
        array[len(values) :] = values[-1] if values else kind.fill
    return array.reshape(shape)


def encode(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The ``TensorProto`` of an array: numbers in ``tensor_content``, strings (``str`` as UTF-8) in ``string_val``.

    Raises:
        ValueError: The dtype has no ``TensorProto`` among those that `decode` reads.
    """
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
    shape = tensor_shape_pb2.TensorShapeProto(dim=dims)
    if array.dtype.kind in "OSU":
        strings = [_to_bytes(value) for value in array.ravel().tolist()]
        return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=strings)
    number = _NUMBERS.get(array.dtype)
    if number is None:
        raise ValueError(f"dtype {array.dtype} is not supported; give one of {_supported()}")
    return tensor_pb2.TensorProto(dtype=number, tensor_shape=shape, tensor_content=array.tobytes())


def _from_content(content: bytes, kind: _Kind, shape: tuple[int, ...], count: int) -> np.ndarray:
    if kind.field == "string_val":
        raise ValueError("strings are read from string_val, and tensor_content came; send them in string_val")
    if len(content) != count * kind.dtype.itemsize:
        raise ValueError(
            f"shape {list(shape)} of {kind.dtype} takes {count * kind.dtype.itemsize} bytes of tensor_content, "
            f"and {len(content)} came; send them all"
        )
    return np.frombuffer(content, kind.dtype).reshape(shape)


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise ValueError(f"a tensor of strings takes str or bytes, and {value!r} is {type(value).__name__}; convert it")


def _supported() -> str:
    return ", ".join(dtype_name(number) for number in _KINDS)
