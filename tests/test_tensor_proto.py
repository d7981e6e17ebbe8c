"""The codec compared with TensorFlow's own in both directions, and its errors."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow.core.framework import tensor_pb2, types_pb2

from q2s_tf.serving import tensor_proto

STRINGS = np.array([[b"red", b"\xff\x00nul at the end\x00"], ["naïve".encode(), b""]], dtype=object)
ARRAYS = [
    np.array([[1.5, -0.0], [np.inf, np.nan]], np.float32),
    np.array([1.5, 1e300], np.float64),
    np.array([-(2**31), 2**31 - 1], np.int32),
    np.array([[-(2**63)], [2**63 - 1]], np.int64),
    np.array([True, False]),
    np.array(3, np.int32),
    np.array(True),
    np.array(b"scalar", dtype=object),
    STRINGS,
    np.zeros((0,), object),
    np.zeros((2, 0, 3), np.float32),
    np.arange(6, dtype=np.int64).reshape(2, 3).T,
]


def equal(left: np.ndarray, right: np.ndarray) -> bool:
    """Same dtype, shape and values, with NaN equal to itself."""
    same = (left.dtype, left.shape) == (right.dtype, right.shape)
    return same and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_tensorflow_decodes_encoded_arrays(array: np.ndarray) -> None:
    assert equal(tf.make_ndarray(tensor_proto.encode(array)), array)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_decodes_tensors_of_tensorflow(array: np.ndarray) -> None:
    assert equal(tensor_proto.decode(tf.make_tensor_proto(array)), array)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1.5, 2.5], tf.float32), ([1.5], tf.float64), ([7, 8], tf.int32), ([7], tf.int64), ([True, False], tf.bool)],
)
def test_decodes_values_in_their_own_field(values: list, dtype: tf.DType) -> None:
    proto = tf.make_tensor_proto(values, dtype)
    array = tf.make_ndarray(proto)
    fields = {tf.float32: "float_val", tf.float64: "double_val", tf.int32: "int_val", tf.int64: "int64_val"}
    field = fields.get(dtype, "bool_val")
    proto.ClearField("tensor_content")
    proto.ClearField(field)
    getattr(proto, field).extend(values)
    assert equal(tensor_proto.decode(proto), array)


@pytest.mark.parametrize(
    "array", [np.full((2, 3), 7, np.int32), np.full(4, 0.5, np.float32), np.full((3,), b"x", object)]
)
def test_one_value_fills_the_shape_as_in_tensorflow(array: np.ndarray) -> None:
    proto = tensor_pb2.TensorProto(dtype=tf.as_dtype(array.dtype).as_datatype_enum)
    proto.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    field = {"int32": proto.int_val, "float32": proto.float_val, "object": proto.string_val}[array.dtype.name]
    field.append(array.flat[0])
    assert equal(tensor_proto.decode(proto), array)
    assert equal(tf.make_ndarray(proto), array)


NUMBERS = st.sampled_from([np.float32, np.int32, np.int64, np.bool_])


@settings(deadline=None)
@given(arrays.arrays(NUMBERS, arrays.array_shapes(min_dims=0, min_side=0)))
def test_numbers_are_unchanged_by_a_round_trip(array: np.ndarray) -> None:
    proto = tensor_pb2.TensorProto.FromString(tensor_proto.encode(array).SerializeToString())
    assert equal(tensor_proto.decode(proto), array)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=8) | st.text(max_size=8)))
def test_strings_are_bytes_after_a_round_trip(values: list[bytes | str]) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    expected = [value.encode() if isinstance(value, str) else value for value in values]
    assert tensor_proto.decode(tensor_proto.encode(array)).tolist() == expected


def test_numpy_text_is_encoded_as_utf8() -> None:
    assert tensor_proto.decode(tensor_proto.encode(np.array(["đỏ", "a"]))).tolist() == ["đỏ".encode(), b"a"]


def _proto(dtype: int, dims: list[int], **fields: object) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for dim in dims:
        proto.tensor_shape.dim.add(size=dim)
    return proto


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (_proto(types_pb2.DT_COMPLEX64, [1]), "dtype complex64 is not supported"),
        (_proto(types_pb2.DT_FLOAT, [-1], float_val=[1]), "must be known"),
        (_proto(types_pb2.DT_FLOAT, [2], float_val=[1, 2, 3]), "has 2 values, got 3"),
        (_proto(types_pb2.DT_FLOAT, [2], tensor_content=b"1234"), "takes 8 bytes of tensor_content, got 4"),
        (_proto(types_pb2.DT_STRING, [1], tensor_content=b"1234"), "send them in string_val"),
        (_proto(types_pb2.DT_FLOAT, [1 << 40, 1 << 40], float_val=[1]), "and the limit is 67108864"),
        (_proto(types_pb2.DT_STRING, [4096], string_val=[b"a" * 20_000]), "takes 82018304 bytes"),
    ],
)
def test_invalid_tensors_are_refused(proto: tensor_pb2.TensorProto, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensor_proto.decode(proto)


@pytest.mark.parametrize("array", [np.zeros(1, np.complex64), np.array([b"x", 3], dtype=object)])
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"supported|takes str or bytes"):
        tensor_proto.encode(array)
