"""A text encoder as an ONNX graph for batches, with the weights of `TextEncoder`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper
from query_tower_onnx import OPSET, Graph, feed_forward, normalise_layer

if TYPE_CHECKING:
    from q2s_tf.layers import TextEncoder

MASKED_SCORE = np.float32(-1e9)


def build_text_encoder(encoder: "TextEncoder") -> onnx.ModelProto:
    """int64 token ids `[B, L]`, 0 is padding, to the pooled vectors `[B, H]` of `encoder` in inference."""
    graph = Graph()
    heads, size = encoder.num_heads, encoder.hidden_dim
    tables = encoder.embeddings
    length = graph("Slice", graph("Shape", "ids"), np.array([1]), np.array([2]))
    present = graph("Cast", graph("Greater", "ids", np.int64(0)), to=onnx.TensorProto.FLOAT)
    absent = graph("Sub", np.float32(1), present)
    bias = graph("Unsqueeze", graph("Mul", absent, MASKED_SCORE), np.array([1, 2]))
    positions = graph("Slice", tables["position_table"], np.array([0]), length)
    hidden = graph("Add", graph("Gather", tables["token_table"], "ids"), positions)
    hidden = normalise_layer(graph, encoder, tables, "", hidden)
    for block in encoder.blocks:
        last = encoder.pooling == "cls" and block is encoder.blocks[-1]
        tokens = graph("Slice", hidden, np.array([0]), np.array([1]), np.array([1])) if last else hidden
        kernel, biases = np.asarray(block["qkv_kernel"]), np.asarray(block["qkv_bias"])

        def project(source: str, part: int, order: list[int], kernel: Any = kernel, biases: Any = biases) -> str:
            columns = slice(part * size, (part + 1) * size)
            product = graph("Add", graph("MatMul", source, kernel[:, columns]), biases[columns])
            split = graph("Reshape", product, np.array([0, -1, heads, size // heads]))
            return graph("Transpose", split, perm=order)

        query = graph("Mul", project(tokens, 0, [0, 2, 1, 3]), np.float32((size // heads) ** -0.5))
        scores = graph("Add", graph("MatMul", query, project(hidden, 1, [0, 2, 3, 1])), bias)
        mixed = graph("MatMul", graph("Softmax", scores), project(hidden, 2, [0, 2, 1, 3]))
        packed = graph("Reshape", graph("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([0, -1, size]))
        attended = graph("Add", graph("MatMul", packed, block["attention_kernel"]), block["attention_bias"])
        hidden = feed_forward(graph, encoder, block, graph("Add", tokens, attended))
    if encoder.pooling == "mean":
        summed = graph("MatMul", graph("Unsqueeze", present, np.array([1])), hidden)
        count = graph("ReduceSum", present, np.array([1]), keepdims=1)
        pooled = graph("Div", graph("Squeeze", summed, np.array([1])), count)
    else:
        pooled = graph("Squeeze", hidden, np.array([1]))
    inputs = [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "length"])]
    output = helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, ["batch", size])
    made = helper.make_graph(graph.nodes, "text_encoder", inputs, [output], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
