"""Requests and answers as TensorFlow Serving's REST API writes them: the row and the columnar format.

Row: ``{"instances": [{"query": "red sofa", "country": "US"}]}`` is answered with ``{"predictions": [{…}]}``, one object
an instance. Columnar: ``{"inputs": {"query": ["red sofa"], "country": ["US"], "k": 10, …}}`` is answered with
``{"outputs": {…}}``; scalars such as ``k`` can only be given so. With a single input its name may be left out, with a
single output it is. Bytes are ``{"b64": "…"}``; ``NaN`` and ``Infinity`` are read and written.

Differences from TensorFlow Serving: ``output_filter`` is honoured; a string that is no UTF-8 comes as ``{"b64": …}``
(there the answer is no JSON), as do outputs whose names end with ``_bytes`` (there as well); an integer for a float
input may be larger than a float32 can tell apart.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2

from q2s_tf.server.servable import Input
from q2s_tf.serving import tensor_proto
from q2s_tf.serving.serving_error import ServingError

ROW, COLUMNAR = "instances", "inputs"
_ANSWER_KEYS = {ROW: "predictions", COLUMNAR: "outputs"}


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ServingError: INVALID_ARGUMENT if it is none, or has not exactly one of ``instances`` and ``inputs``, or a
            ``signature_name`` that is no string, or an ``output_filter`` that is no list of strings.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the body is no JSON: {error}") from error
    if not isinstance(request, dict):
        raise _invalid(f"the body must be a JSON object, and a {type(request).__name__} came")
    if (ROW in request) == (COLUMNAR in request):
        raise _invalid(f'the body must have either "{ROW}" or "{COLUMNAR}"')
    if not isinstance(request.get("signature_name", ""), str):
        raise _invalid("signature_name must be a string")
    names = request.get("output_filter", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _invalid("output_filter must be a list of strings")
    return request


def fill(message: predict_pb2.PredictRequest, request: Mapping[str, Any], inputs: Mapping[str, Input]) -> None:
    """Puts the tensors of a parsed request into ``message``; ``inputs`` are what the signature takes.

    Raises:
        ServingError: INVALID_ARGUMENT if the values are not of the inputs' types, or the lists are ragged.
    """
    columns = _columns_of_rows(request[ROW], inputs) if ROW in request else _columns(request[COLUMNAR], inputs)
    for key, value in columns.items():
        if key in inputs:  # the others are refused with all that is missing, when the signature runs
            message.inputs[key].CopyFrom(tensor_proto.encode(_array(value, inputs[key])))
        else:
            message.inputs[key].SetInParent()


def render(response: predict_pb2.PredictResponse, request: Mapping[str, Any]) -> bytes:
    """The answer's JSON, in the format of the parsed request.

    Raises:
        ServingError: INVALID_ARGUMENT if a request in row format has outputs that are not one row an instance.
    """
    outputs = {key: tensor_proto.decode(response.outputs[key]) for key in sorted(response.outputs)}
    form = ROW if ROW in request else COLUMNAR
    columns = {key: _plain(key, array) for key, array in outputs.items()}
    if form == COLUMNAR:
        answer = next(iter(columns.values())) if len(columns) == 1 else columns
    else:
        if len({array.shape[:1] for array in outputs.values()} | {()}) != 2:
            shapes = ", ".join(f'"{key}" {list(array.shape)}' for key, array in outputs.items())
            raise _invalid(f'the outputs have not one row an instance each ({shapes}); ask with "{COLUMNAR}"')
        rows = zip(*columns.values(), strict=True)
        answer = [row[0] if len(row) == 1 else dict(zip(columns, row, strict=True)) for row in rows]
    return json.dumps({_ANSWER_KEYS[form]: answer}, ensure_ascii=False).encode()


def _columns_of_rows(instances: Any, inputs: Mapping[str, Input]) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise _invalid(f'"{ROW}" must be a list with at least one item')
    if all(not isinstance(row, dict) or _is_bytes(row) for row in instances):
        return _columns(instances, inputs)
    keys = list(inputs)
    for number, row in enumerate(instances):
        if not isinstance(row, dict) or sorted(row) != keys:
            came = f"with {', '.join(sorted(row)) or 'nothing'}" if isinstance(row, dict) else "that is no object"
            raise _invalid(f'"{ROW}"[{number}] must be an object with {", ".join(keys)}, and one {came} came')
    return {key: [row[key] for row in instances] for key in keys}


def _columns(value: Any, inputs: Mapping[str, Input]) -> dict[str, Any]:
    if isinstance(value, dict) and not _is_bytes(value):
        return value
    if len(inputs) != 1:
        raise _invalid(f"a plain value came, and the signature has several inputs: name {', '.join(inputs)}")
    return {key: value for key in inputs}


def _array(value: Any, wanted: Input) -> np.ndarray:
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    leaves = [value]
    for size in shape:
        if any(not isinstance(item, list) or len(item) != size for item in leaves):
            raise _invalid(f'input "{wanted.key}": its lists must have the same length all through; fill them up')
        leaves = [leaf for item in leaves for leaf in item]
    name = tensor_proto.dtype_name(wanted.dtype)
    values = [_value(leaf, name, wanted) for leaf in leaves]
    array = np.empty(len(values), object if name == "string" else name)
    try:
        with np.errstate(over="raise"):
            array[:] = values
    except (OverflowError, FloatingPointError) as error:
        raise _invalid(f'input "{wanted.key}": a number is too large for {name}') from error
    return array.reshape(shape)


def _value(leaf: Any, name: str, wanted: Input) -> Any:
    if name == "string" and isinstance(leaf, dict) and _is_bytes(leaf):
        try:
            return base64.b64decode(leaf["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _invalid(f'input "{wanted.key}": the b64 of a value is no base64: {error}') from error
    fits = {
        "string": isinstance(leaf, str),
        "bool": isinstance(leaf, bool),
        "int32": isinstance(leaf, int) and not isinstance(leaf, bool),
        "float32": isinstance(leaf, int | float) and not isinstance(leaf, bool),
    }
    if not fits[{"int64": "int32", "float64": "float32"}.get(name, name)]:
        raise _invalid(f'input "{wanted.key}" must be {wanted}, and {json.dumps(leaf)[:80]} came')
    try:
        return leaf.encode() if name == "string" else leaf
    except UnicodeEncodeError as error:  # JSON can write half a character: "\\ud83d"
        raise _invalid(f'input "{wanted.key}": {json.dumps(leaf)[:80]} is no text; send bytes as b64') from error


def _plain(key: str, array: np.ndarray) -> Any:
    """An array as nested lists of what JSON has; floats with no more digits than tell them apart in their own type."""
    if array.dtype == np.float32:
        return array.astype("U").astype(np.float64).tolist()
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.size, object)
    texts[:] = [_text(value, key.endswith("_bytes")) for value in array.ravel()]
    return texts.reshape(array.shape).tolist()


def _text(value: bytes, as_bytes: bool) -> str | dict[str, str]:
    try:
        if not as_bytes:
            return value.decode()
    except UnicodeDecodeError:
        pass
    return {"b64": base64.b64encode(value).decode()}


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _invalid(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, " ".join(message.split()))
