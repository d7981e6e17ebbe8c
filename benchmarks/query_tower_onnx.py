"""The query tower without TensorFlow: text work in Python, the rest as an ONNX graph of the same weights and economy.

It is for one query at a time whose channels are all there, so it has no mask at all.
"""

import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import sentencepiece
from onnx import helper, numpy_helper

from q2s_tf.models import Tower

OPSET = 20
_MULTIPLIERS = np.array([-7046029254386353131, 7640891576956012809, -4942790177534073029])


def query_tower(tower: Tower) -> Callable[[str, str], np.ndarray]:
    """The tower as a function from a query and a country to the embedding `[D]`, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(build_graph(tower).SerializeToString(), options, ["CPUExecutionProvider"])
    models = (layer.tokenizer.model for layer in tower.token_layers.values() if layer.tokenizer)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=next(models))
    channels = tower.channels

    def embed(query: str, country: str) -> np.ndarray:
        texts = {"query": normalise(query), "country": normalise(country)}
        ids = {name: _ids(channel, texts[channel.input], tokenizer) for name, channel in channels.items()}
        return session.run(None, ids)[0][0]

    return embed


def _ids(channel: Any, text: str, tokenizer: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    if channel.kind == "trigrams":
        return trigram_ids(text, channel.buckets)[: channel.max_trigrams]
    if channel.kind == "text":
        return np.array([tokenizer.bos_id(), *tokenizer.encode(text)][: channel.max_tokens])
    return np.array([channel.values.index(text) + 1])


def normalise(text: str) -> str:
    """`q2s_tf.text.normalise` for a clean text."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def trigram_ids(text: str, buckets: int) -> np.ndarray:
    """`q2s_tf.text.trigram_ids` for one text."""
    points = np.frombuffer(f" {text} ".encode("utf-32-le"), np.int32).astype(np.int64)
    mixed = points[:-2] * _MULTIPLIERS[0] + points[1:-1] * _MULTIPLIERS[1] + points[2:] * _MULTIPLIERS[2]
    return (mixed ^ (mixed >> 32)) % buckets + 1


def build_graph(tower: Tower) -> onnx.ModelProto:
    """The encoder of a query tower: int64 ids by channel, each `[L]`, to `embedding` `[1, D]`."""
    graph = Graph()
    vectors = []
    for name, channel in tower.channels.items():
        layer = tower.channel_layers[name]
        if channel.kind == "text":
            cls = _encode(graph, tower.text_encoders[channel.encoder], name)
            vectors.append(graph("Gemm", cls, layer.kernel, layer.bias))
        else:
            rows = graph("Gather", layer.embeddings if channel.kind == "categorical" else layer.table, name)
            vectors.append(graph("ReduceSum", rows, np.array([0]), keepdims=1))
    weights = graph("Softmax", graph("MatMul", graph("Concat", *vectors, axis=1), tower.fusion.kernel))
    fused = graph("MatMul", weights, graph("Concat", *vectors, axis=0))
    embedding = graph("LpNormalization", fused, axis=1, p=2)
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [None]) for name in tower.channel_names]
    output = helper.make_tensor_value_info(embedding, onnx.TensorProto.FLOAT, [1, tower.config.dimension])
    made = helper.make_graph(graph.nodes, "query_tower", inputs, [output], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


class Graph:
    """Nodes and constants under construction; a call adds a node and gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return the name of its output, or their names."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        made = [f"{op}_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def _constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"constant_{len(self.constants)}"))
        return self.constants[-1].name


def _encode(graph: Graph, encoder: Any, ids: str) -> str:
    """[CLS] `[1, H]` of the token ids `[L]`; the last layer is computed for [CLS] only."""
    tables = encoder.embeddings
    tokens = graph("Gather", tables["token_table"], ids)
    positions = graph("Slice", tables["position_table"], np.array([0]), graph("Shape", ids))
    hidden = normalise_layer(graph, encoder, tables, "", graph("Add", tokens, positions))
    for block in encoder.blocks:
        last = block is encoder.blocks[-1]
        tokens = graph("Slice", hidden, np.array([0]), np.array([1])) if last else hidden
        attended = graph("Add", tokens, _attend(graph, encoder, block, tokens, hidden))
        hidden = feed_forward(graph, encoder, block, attended)
    return hidden


def _attend(graph: Graph, encoder: Any, block: Any, tokens: str, context: str) -> str:
    heads, size = encoder.num_heads, encoder.hidden_dim
    width = size // heads
    kernel, bias = np.asarray(block["qkv_kernel"]), np.asarray(block["qkv_bias"])

    def project(source: str, first: int, count: int) -> Any:
        columns = slice(first * size, (first + count) * size)
        made = graph("Gemm", source, kernel[:, columns], bias[columns])
        return made if count == 1 else graph("Split", made, outputs=count, axis=1, num_outputs=count)

    def by_head(projected: str, order: list[int]) -> str:
        return graph("Transpose", graph("Reshape", projected, np.array([-1, heads, width])), perm=order)

    if tokens == context:
        query, key, value = project(context, 0, 3)
    else:
        query = project(tokens, 0, 1)
        key, value = project(context, 1, 2)
    query = graph("Mul", query, np.float32(width**-0.5))
    weights = graph("Softmax", graph("MatMul", by_head(query, [1, 0, 2]), by_head(key, [1, 2, 0])))
    mixed = graph("Transpose", graph("MatMul", weights, by_head(value, [1, 0, 2])), perm=[1, 0, 2])
    packed = graph("Reshape", mixed, np.array([-1, heads * width]))
    return graph("Gemm", packed, block["attention_kernel"], block["attention_bias"])


def feed_forward(graph: Graph, encoder: Any, block: Any, attended: str) -> str:
    """The part of a layer after attention, for tokens `[..., H]` to which the outputs of attention are added."""
    attended = normalise_layer(graph, encoder, block, "attention_", attended)
    inner = graph("Add", graph("MatMul", attended, block["inner_kernel"]), block["inner_bias"])
    outer = graph("Add", graph("MatMul", graph("Gelu", inner), block["outer_kernel"]), block["outer_bias"])
    return normalise_layer(graph, encoder, block, "output_", graph("Add", attended, outer))


def normalise_layer(graph: Graph, encoder: Any, weights: Any, prefix: str, tokens: str) -> str:
    """Layer normalisation of tokens `[..., H]`."""
    gamma, beta = weights[f"{prefix}gamma"], weights[f"{prefix}beta"]
    return graph("LayerNormalization", tokens, gamma, beta, epsilon=encoder.epsilon)
