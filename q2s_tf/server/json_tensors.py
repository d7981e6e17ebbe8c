"""The JSON of TensorFlow Serving's REST API: the row format and the columnar format of requests and responses.

Row format: ``{"instances": [{"query": "red sofa", "country": "US"}]}`` is answered with ``{"predictions": [{…}]}``, one
object for each instance. Columnar format: ``{"inputs": {"query": ["red sofa"], "country": ["US"], "k": 10, …}}`` is
answered with ``{"outputs": {…}}``; scalar inputs such as ``k`` need this format. The name of the only input may be
omitted, and the name of the only output is. Bytes are ``{"b64": "…"}``, in outputs if they are not UTF-8 or the name
ends with ``_bytes``. ``NaN`` and ``Infinity`` are read and written. ``output_filter`` is supported.
"""

import base64
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from grpc import StatusCode
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from q2s_tf.server.servable import InputSpec, Signature
from q2s_tf.serving import tensor_proto
from q2s_tf.serving.serving_error import ServingError

FindSignature = Callable[[str], Signature]
MAX_LEVELS = 8  # of lists in a value
_JSON_TYPES: dict[str, Any] = {"string": str, "bool": bool}
_JSON_TYPES |= dict.fromkeys(("int32", "int64"), int) | dict.fromkeys(("float32", "float64"), (int, float))


def read(body: bytearray, spec: ModelSpec, find_signature: FindSignature) -> tuple[PredictRequest, bool]:
    """The request for a model from a JSON body, and whether it has the row format.

    Raises:
        ServingError: INVALID_ARGUMENT if the body is not as described in this module, a value has the wrong type, or
            lists at one level differ in length; what ``find_signature`` raises for an unknown name.
    """
    try:
        return _read(json.loads(body), spec, find_signature)
    except (RecursionError, ValueError) as error:
        problem = "the body is not JSON: " if isinstance(error, RecursionError | json.JSONDecodeError) else ""
        raise ServingError(StatusCode.INVALID_ARGUMENT, " ".join(f"{problem}{error}".split())) from error


def _read(request: Any, spec: ModelSpec, find_signature: FindSignature) -> tuple[PredictRequest, bool]:
    if not isinstance(request, dict):
        raise ValueError(f"the body must be a JSON object, got a {type(request).__name__}")
    if ("instances" in request) == ("inputs" in request):
        raise ValueError('the body must have either "instances" or "inputs"')
    name, output_filter = request.get("signature_name", ""), request.get("output_filter", [])
    if not isinstance(name, str):
        raise ValueError("signature_name must be a string")
    if not isinstance(output_filter, list) or not all(isinstance(output, str) for output in output_filter):
        raise ValueError("output_filter must be a list of strings")
    message = PredictRequest(model_spec=spec, output_filter=output_filter)
    message.model_spec.signature_name = name
    signature = find_signature(name)
    inputs = signature.inputs
    columns: Any = request["inputs"] if "inputs" in request else _to_columns(request["instances"], signature)
    if not isinstance(columns, dict) or _is_bytes(columns):  # the values of the only input
        if len(inputs) != 1:
            raise ValueError(f"the signature has several inputs; name them: {', '.join(inputs)}")
        columns = dict.fromkeys(inputs, columns)
    for key, value in columns.items():
        if key in inputs:
            message.inputs[key].CopyFrom(tensor_proto.encode(_to_array(value, inputs[key])))
        else:  # the signature refuses it together with all that are missing
            message.inputs[key].SetInParent()
    return message, "instances" in request


def render(response: PredictResponse, rows: bool) -> bytes:
    """The JSON of a response, in row format or in columnar format.

    Raises:
        ServingError: INVALID_ARGUMENT if a request in row format has outputs that do not have one row per instance.
    """
    arrays = {key: tensor_proto.decode(response.outputs[key], sys.maxsize) for key in sorted(response.outputs)}
    columns = {key: _to_json(key, array) for key, array in arrays.items()}
    if rows and len({array.shape[:1] for array in arrays.values()} | {()}) != 2:
        shapes = ", ".join(f'"{key}" {list(array.shape)}' for key, array in arrays.items())
        message = f'the outputs do not have one row per instance ({shapes}); use "inputs"'
        raise ServingError(StatusCode.INVALID_ARGUMENT, message)
    values: Any = columns
    if len(columns) == 1:
        (values,) = columns.values()
    elif rows:
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"predictions" if rows else "outputs": values}, ensure_ascii=False).encode()


def _to_columns(instances: Any, signature: Signature) -> Any:
    if not isinstance(instances, list) or not instances:
        raise ValueError('"instances" must be a list with at least one item')
    if not any(isinstance(row, dict) and not _is_bytes(row) for row in instances):
        return instances
    first = set(instances[0]) if isinstance(instances[0], dict) else set()
    keys = [key for key in signature.inputs if key in first or key not in signature.defaults]
    for number, row in enumerate(instances):
        if not isinstance(row, dict) or sorted(row) != keys:
            received = ", ".join(sorted(row)) or "no inputs" if isinstance(row, dict) else json.dumps(row)[:80]
            raise ValueError(f'"instances"[{number}] must be an object with {", ".join(keys)}, got {received}')
    return {key: [row[key] for row in instances] for key in keys}


def _to_array(value: Any, spec: InputSpec) -> np.ndarray:
    leaves, shape = [value], list[int]()
    while leaves and isinstance(leaves[0], list):
        lengths = {len(leaf) if isinstance(leaf, list) else -1 for leaf in leaves}
        if len(lengths) > 1:
            raise ValueError(f'input "{spec.key}": all lists at one level must have the same length; pad them')
        shape += lengths
        if len(shape) > MAX_LEVELS:
            raise ValueError(f'input "{spec.key}" must be {spec}, got more than {MAX_LEVELS} levels of lists')
        leaves = [item for leaf in leaves for item in leaf]
    name = tensor_proto.dtype_name(spec.dtype)
    array = np.empty(len(leaves), object if name == "string" else name)
    try:
        with np.errstate(over="raise"):
            array[:] = [_to_scalar(leaf, name, spec) for leaf in leaves]
    except (OverflowError, FloatingPointError) as error:
        raise ValueError(f'input "{spec.key}": a number is too large for {name}') from error
    return array.reshape(shape)


def _to_scalar(leaf: Any, name: str, spec: InputSpec) -> Any:
    try:
        if name == "string" and _is_bytes(leaf):
            return base64.b64decode(leaf["b64"], validate=True)
        if isinstance(leaf, _JSON_TYPES.get(name, ())) and isinstance(leaf, bool) == (name == "bool"):
            return leaf.encode() if name == "string" else leaf
    except ValueError as error:  # wrong base64, or half of a surrogate pair ("\\ud83d")
        raise ValueError(f'input "{spec.key}": {json.dumps(leaf)[:80]} is neither text nor base64: {error}') from error
    raise ValueError(f'input "{spec.key}" must be {spec}, got {json.dumps(leaf)[:80]}')


def _to_json(key: str, array: np.ndarray) -> Any:
    """An array as nested lists; a float32 has only the digits that it needs."""
    if array.dtype == np.float32:
        return array.astype("U").astype(np.float64).tolist()
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.size, object)
    texts[:] = [_to_text(value, key.endswith("_bytes")) for value in array.ravel()]
    return texts.reshape(array.shape).tolist()


def _to_text(value: bytes, as_bytes: bool) -> str | dict[str, str]:
    if not as_bytes:
        with suppress(UnicodeDecodeError):
            return value.decode()
    return {"b64": base64.b64encode(value).decode()}


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)
