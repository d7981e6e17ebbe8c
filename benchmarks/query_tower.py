#!/usr/bin/env python
"""Time of a query from text to vector: the export of q2s_tf, exports of Keras, and ONNX Runtime.

All have the same weights, run on one thread without oneDNN, and take turns of 50 queries, one at a time, so that the
speed of the machine is the same for all of them. The exports run through the session loader, as in TensorFlow Serving.
"KerasHub" is `keras.export.ExportArchive` of the tower with the backbone of KerasHub as its text encoder; "Keras" is
the same of the tower itself; both have the text ops of q2s_tf. ONNX Runtime has normalisation, SentencePiece and
hashing in Python (see query_tower_onnx.py).
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli
from q2s_tf.errors import InputError

if TYPE_CHECKING:
    from q2s_tf.models import Tower

Way = Callable[[str, str], Any]
TURN, WARM_UP = 50, 5
KERASHUB, KERAS, OURS, ONNX = "ExportArchive, KerasHub", "ExportArchive, Keras", "q2s_tf", "ONNX Runtime"


def main(
    queries: Path = typer.Option(..., help="Parquet file with the columns query and country."),
    run: Path | None = typer.Option(None, help="Run directory; random weights of the paper's geometry if not given."),
    documents: Path | None = typer.Option(None, help="Without --run: titles to train the tokenizer on, too."),
    vocabulary: int = typer.Option(150_000, help="Without --run: rows of the token table."),
    rounds: int = typer.Option(2_000, help="Queries of each way in one repetition."),
    repeats: int = typer.Option(5, help="Repetitions; the table has the medians of their percentiles."),
) -> None:
    """Compare p50 and p99 of the query tower, text to vector.

    Example: benchmarks/query_tower.py --queries runs/home_depot_data/judgements_dev.parquet
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import numpy as np

    asked = read_queries(queries)
    with cli.console.status("making the towers"):
        tower = load_tower(run) if run else random_tower([query for query, _ in asked], documents, vocabulary)
        asked = drop_missing(tower, asked)
        with tempfile.TemporaryDirectory() as folder:
            ways = make_ways(tower, Path(folder))
    check_equal(tower, ways, asked[:500])
    percentiles = {name: np.zeros((repeats, 2)) for name in ways}
    for repeat in cli.track(range(repeats), "repetitions"):
        for name, seconds in measure(ways, asked, rounds, repeat).items():
            percentiles[name][repeat] = np.percentile(seconds, [50, 99]) * 1e3
    table = Table("text to vector", "p50 ms", "p99 ms", "p50 / KerasHub", "p99", "p50 / ONNX", "p99")
    for name, values in percentiles.items():
        ratios = [np.median(values / percentiles[other], axis=0) for other in (KERASHUB, ONNX)]
        table.add_row(name, *(f"{value:.3f}" for value in [*np.median(values, axis=0), *ratios[0], *ratios[1]]))
    Console().print(table)


def read_queries(path: Path) -> list[tuple[str, str]]:
    """The distinct queries of a table, each with its country."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["query", "country"])
    pairs = zip(table["query"].to_pylist(), table["country"].to_pylist(), strict=True)
    found = list(dict.fromkeys((query, country or "") for query, country in pairs if query))
    if not found:
        raise InputError(f"queries {path}: must hold at least one query; it holds none")
    return found


def drop_missing(tower: "Tower", asked: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The queries none of whose channels is missing: the ONNX graph has no mask."""
    kept = [
        pair for pair, weights in zip(asked, outputs(tower, asked)["channel_weights"], strict=True) if weights.all()
    ]
    if not kept:
        raise InputError("queries: every one lacks a channel of the tower: give one with the countries of the run")
    return kept


def outputs(tower: "Tower", asked: list[tuple[str, str]]) -> dict[str, Any]:
    """The outputs of the Keras tower."""
    from q2s_tf.models import encode

    return encode(tower, {"query": [query for query, _ in asked], "country": [country for _, country in asked]})


def load_tower(run: Path) -> "Tower":
    """The query tower of a run."""
    from q2s_tf.models import load

    return load(run).query


def random_tower(texts: list[str], documents: Path | None, vocabulary: int) -> "Tower":
    """The paper's query tower with random weights, none of which is 0: a product with zeros would be folded away.

    The tokenizer is trained on the texts. It has fewer pieces than the token table has rows, where they yield fewer:
    the rows beyond are never read.
    """
    import numpy as np
    import pyarrow.parquet as pq
    import tensorflow as tf

    from q2s_tf.config import CategoricalChannel, Channel, Config, Encoder, TextChannel, TrigramsChannel
    from q2s_tf.models import Tower
    from q2s_tf.text import SentencePiece, normalise, train_tokenizer

    if documents:
        texts = [*texts, *pq.read_table(documents, columns=["title"])["title"].drop_null().to_pylist()]
    normal = (text.decode() for text in normalise(tf.constant(texts)).numpy())
    model = train_tokenizer(normal, vocabulary)
    pieces = SentencePiece(model).vocabulary_size
    cli.console.print(f"{pieces:,} pieces, {vocabulary:,} rows in the token table")
    channels: dict[str, Channel] = {
        "trigrams": TrigramsChannel(tower="query", input="query", kind="trigrams", max_trigrams=64),
        "country": CategoricalChannel(tower="query", input="country", kind="categorical", values=("us", "gb", "de")),
        "text": TextChannel(tower="query", input="query", kind="text", encoder="query", max_tokens=16),
        "title": TrigramsChannel(tower="document", input="title", kind="trigrams"),
    }
    config = Config(channels=channels, encoders={"query": Encoder()})
    tower = Tower(config, "query", {"query": vocabulary}, {"query": model})
    generator = np.random.default_rng(1)
    for weight in tower.trainable_variables:
        weight.assign(weight.numpy() + generator.normal(scale=0.05, size=weight.shape).astype(np.float32))
    return tower


def make_ways(tower: "Tower", folder: Path) -> dict[str, Way]:
    """Every way to embed a query, by name."""
    import query_tower_onnx
    import tensorflow as tf

    from q2s_tf.models import Tower
    from q2s_tf.serving.tower_servable import TowerServable

    save_archive(tower, folder / "keras")
    tokenizers = {name: layer.tokenizer.model for name, layer in tower.token_layers.items() if layer.tokenizer}
    plain = Tower(tower.config, "query", tower.vocabulary_sizes, tokenizers)
    plain.set_weights(tower.get_weights())
    backbones: dict[str, Any] = {name: Backbone(encoder) for name, encoder in tower.text_encoders.items()}
    plain.text_encoders = backbones
    save_archive(plain, folder / "kerashub")
    servable = TowerServable(tower)
    tf.saved_model.save(servable, str(folder / "ours"), servable.endpoints)
    return {
        KERASHUB: session_call(folder / "kerashub"),
        KERAS: session_call(folder / "keras"),
        OURS: session_call(folder / "ours"),
        ONNX: query_tower_onnx.query_tower(tower),
    }


class Backbone:
    """The backbone of KerasHub with the weights of a `TextEncoder`, called as the encoder is."""

    def __init__(self, encoder: Any):
        import keras_hub

        self.backbone = keras_hub.models.XLMRobertaBackbone(
            encoder.vocabulary_size,
            encoder.num_layers,
            encoder.num_heads,
            encoder.hidden_dim,
            encoder.intermediate_dim,
            max_sequence_length=encoder.max_tokens,
        )
        copy_to_backbone(encoder, self.backbone)

    def __call__(self, ids: Any, training: bool | None = None) -> Any:
        """[CLS] of token ids `[batch, L]`, `[batch, H]`."""
        return self.backbone({"token_ids": ids, "padding_mask": ids != 0}, training=training)[:, 0]


def copy_to_backbone(encoder: Any, backbone: Any) -> None:
    """The inverse of `q2s_tf.models.copy_weights`, without exchanging ids."""
    import numpy as np

    from q2s_tf.models.pretrained import BLOCK_WEIGHTS, QKV

    embeddings = encoder.embeddings
    backbone.token_embedding.embeddings.assign(embeddings["token_table"])
    backbone.embeddings.position_embedding.position_embeddings.assign(embeddings["position_table"])
    backbone.embeddings_layer_norm.gamma.assign(embeddings["gamma"])
    backbone.embeddings_layer_norm.beta.assign(embeddings["beta"])
    for block, layer in zip(encoder.blocks, backbone.transformer_layers, strict=True):
        values = {path: block[name].numpy() for name, path in BLOCK_WEIGHTS.items()}
        for kind in ("kernel", "bias"):
            parts = np.split(block[f"qkv_{kind}"].numpy(), 3, axis=-1)
            values |= {f"self_attention_layer/{name}/{kind}": part for name, part in zip(QKV, parts, strict=True)}
        for weight in layer.weights:
            weight.assign(values[weight.path.rpartition(f"{layer.name}/")[2]].reshape(weight.shape))


def save_archive(tower: "Tower", folder: Path) -> None:
    """Exports a tower as a user of Keras would."""
    import keras
    import tensorflow as tf

    def serve(query: Any, country: Any) -> dict[str, Any]:
        inputs = tower.preprocessor({"query": query, "country": country})
        embedding, weights = tower.fuse(*tower.encode_channels(inputs))
        return {"embedding": embedding, "channel_weights": weights}

    archive = keras.export.ExportArchive()
    archive.track(tower)
    for encoder in tower.text_encoders.values():
        if isinstance(encoder, Backbone):
            archive.track(encoder.backbone)
    inputs = [tf.TensorSpec([None], tf.string, name=name) for name in ("query", "country")]
    archive.add_endpoint("serving_default", serve, inputs)
    archive.write_out(str(folder), verbose=False)


def open_signature(folder: Path, name: str) -> tuple[Any, Any]:
    """A session of one thread with a saved model, by the session loader, and the definition of a signature."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers its ops)

    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=config)
    with graph.as_default():
        loaded = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))
    return session, loaded.signature_def[name]


def session_call(folder: Path) -> Way:
    """The default signature of a saved model as a function from a query and a country to the embedding."""
    import numpy as np
    from tensorflow.core.protobuf import config_pb2

    session, signature = open_signature(folder, "serving_default")
    options = config_pb2.CallableOptions(
        feed=[signature.inputs[key].name for key in ("query", "country")],
        fetch=[signature.outputs[key].name for key in ("embedding", "channel_weights")],
    )
    options.run_options.inter_op_thread_pool = -1  # the ops run in the caller's thread, as in `q2s_tf.server.servable`
    call = session._make_callable_from_options(options)
    return lambda query, country: call(np.array([query.encode()], object), np.array([country.encode()], object))[0][0]


def check_equal(tower: "Tower", ways: dict[str, Way], asked: list[tuple[str, str]]) -> None:
    """Prints how far each way is from the Keras tower, and on how many queries by more than 1e-4.

    The reference implementation of SentencePiece, which ONNX Runtime gets its pieces from, takes another of two equally
    likely segmentations at times.
    """
    import numpy as np

    expected = outputs(tower, asked)
    for name, way in ways.items():
        gaps = np.abs(np.array([way(*pair) for pair in asked]) - expected["embedding"]).max(axis=1)
        near = gaps[gaps < 1e-4]
        cli.console.print(f"{name}: {len(near)} of {len(asked)} queries within {near.max():.0e} of the Keras tower")


def measure(ways: dict[str, Way], asked: list[tuple[str, str]], rounds: int, repeat: int) -> dict[str, list[float]]:
    """Seconds of every call by way; it takes turns of `TURN` queries, after `WARM_UP` that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for begin in range(repeat * rounds, (repeat + 1) * rounds, TURN):
        for name, way in ways.items():
            for place in range(begin - WARM_UP, begin + TURN):
                query, country = asked[place % len(asked)]
                start = time.perf_counter()
                way(query, country)
                if place >= begin:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    cli.run(main)
