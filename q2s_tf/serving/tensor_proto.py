"""NumPy arrays to and from TensorFlow's ``TensorProto``, for the dtypes of the servables.

TensorFlow's own `tf.make_tensor_proto` and `tf.make_ndarray` accept every dtype and every Python value, and take most
of the time of a small request to a Python server. The functions here do only what gRPC needs.
"""

import math
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

MAX_BYTES = 64 << 20
"""The largest decoded tensor: a message of a few bytes can have a shape of any size."""
_STRING_BYTES = 24
"""Bytes of memory that TensorFlow needs for a string, beside its content."""

_FORMATS: dict[int, tuple[np.dtype[Any], str, Any]] = {  # the field of the values, the default value
    types_pb2.DT_FLOAT: (np.dtype(np.float32), "float_val", 0),
    types_pb2.DT_DOUBLE: (np.dtype(np.float64), "double_val", 0),
    types_pb2.DT_INT32: (np.dtype(np.int32), "int_val", 0),
    types_pb2.DT_INT64: (np.dtype(np.int64), "int64_val", 0),
    types_pb2.DT_BOOL: (np.dtype(np.bool_), "bool_val", False),
    types_pb2.DT_STRING: (np.dtype(object), "string_val", b""),
}
_NUMBERS = {dtype: number for number, (dtype, _, _) in _FORMATS.items()}


def dtype_name(number: int) -> str:
    """The Python name of a ``DataType`` number (``float32``, ``string``), ``?`` if there is none."""
    if number in _FORMATS and number != types_pb2.DT_STRING:
        return _FORMATS[number][0].name
    return types_pb2.DataType.Name(number).removeprefix("DT_").lower() if number in types_pb2.DataType.values() else "?"


_SUPPORTED = ", ".join(dtype_name(number) for number in _FORMATS)


def static_shape(proto: tensor_shape_pb2.TensorShapeProto) -> tuple[int | None, ...] | None:
    """The shape in a signature: None for an unknown dimension, and None instead of a tuple for an unknown rank."""
    return None if proto.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in proto.dim)


def decode(proto: tensor_pb2.TensorProto, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array of a ``TensorProto``; strings are an object array of ``bytes``.

    As in TensorFlow, the values are in ``tensor_content`` or in the field of their dtype. If there are fewer values
    than the shape has, the last one is repeated; if there are none, they are zero (or ``b""``).

    Raises:
        ValueError: The dtype is not supported, the shape is unknown, the number of values does not match it, or the
            tensor would take more than ``max_bytes``, with the repetitions of the last value.
    """
    if proto.dtype not in _FORMATS:
        raise ValueError(f"dtype {dtype_name(proto.dtype)} is not supported; send one of {_SUPPORTED}")
    dtype, field, default = _FORMATS[proto.dtype]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or (shape and min(shape) < 0):
        raise ValueError(f"the shape of a tensor must be known, got {list(shape)}; send every dimension")
    count = math.prod(shape)
    values = getattr(proto, field)
    if len(values) > count:
        raise ValueError(f"shape {list(shape)} has {count} values, got {len(values)}; send as many as the shape has")
    size = count * dtype.itemsize
    if field == "string_val":
        repeated = (count - len(values)) * len(values[-1] if values else b"")
        size = count * _STRING_BYTES + sum(map(len, values)) + repeated
    if size > max_bytes:
        raise ValueError(f"shape {list(shape)} takes {size} bytes, and the limit is {max_bytes}; send a smaller batch")
    content = proto.tensor_content
    if content:
        if field == "string_val":
            raise ValueError("strings must be in string_val, got tensor_content; send them in string_val")
        if len(content) != size:
            sizes = f"takes {size} bytes of tensor_content, got {len(content)}"
            raise ValueError(f"shape {list(shape)} of {dtype} {sizes}; send all of them")
        return np.frombuffer(content, dtype).reshape(shape)
    array = np.empty(count, dtype)
    array[: len(values)] = values
    if len(values) < count:
        array[len(values) :] = values[-1] if values else default
    return array.reshape(shape)


def encode(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The ``TensorProto`` of an array: numbers in ``tensor_content``, strings (``str`` as UTF-8) in ``string_val``.

    Raises:
        ValueError: The dtype is not supported.
    """
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
    shape = tensor_shape_pb2.TensorShapeProto(dim=dims)
    if array.dtype.kind in "OSU":
        strings = [value.encode() if isinstance(value, str) else value for value in array.ravel().tolist()]
        for value in strings:
            if not isinstance(value, bytes):
                raise ValueError(f"a tensor of strings takes str or bytes, got {value!r}; convert it")
        return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=strings)
    number = _NUMBERS.get(array.dtype)
    if number is None:
        raise ValueError(f"dtype {array.dtype} is not supported; give one of {_SUPPORTED}")
    return tensor_pb2.TensorProto(dtype=number, tensor_shape=shape, tensor_content=array.tobytes())
