#!/usr/bin/env python
"""Time of a text encoder in training: `TextEncoder` and the backbone of KerasHub, with the same geometry.

They run in turn, forward and backward, with dropout, on rows that are full of tokens and on titles of a catalogue.
The backbone processes padding as well. The medians and their ratio are printed.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from q2s_tf.cli import run

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def main(
    model: Path = typer.Option(..., "--run", help="A run directory, for its tokenizer."),
    documents: Path = typer.Option(..., help="A catalogue with titles."),
    layers: int = typer.Option(6, help="Transformer layers."),
    batch: int = typer.Option(512, help="Rows."),
    tokens: int = typer.Option(32, help="Tokens a row, at most."),
    rounds: int = typer.Option(10, help="Times that each is run, after one that is not counted."),
) -> None:
    """Compare the two ways to compute [CLS] in training.

    Example: benchmarks/text_encoder.py --run runs/home_depot --documents runs/home_depot_data/documents.parquet
    """
    import keras_hub
    import tensorflow as tf

    from q2s_tf.layers import TextEncoder

    titles = read_titles(model, documents, batch, tokens)
    vocabulary = int(tf.reduce_max(titles)) + 1
    encoder = TextEncoder(vocabulary, tokens, layers, 4, 128, 384, 0.1)
    encoder(titles)
    backbone = keras_hub.models.XLMRobertaBackbone(
        vocabulary, layers, num_heads=4, hidden_dim=128, intermediate_dim=384, max_sequence_length=tokens
    )

    def step(
        forward: Callable[["tf.Tensor"], "tf.Tensor"], variables: list["keras.Variable"]
    ) -> Callable[["tf.Tensor"], object]:
        def gradients(ids: tf.Tensor) -> object:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward(ids) ** 2)
            return tape.gradient(loss, variables)

        return tf.function(gradients, autograph=False)

    def first(ids: tf.Tensor) -> tf.Tensor:
        return backbone({"token_ids": ids, "padding_mask": ids != 0}, training=True)[:, 0]

    ways = {
        "backbone": step(first, backbone.trainable_variables),
        "TextEncoder": step(lambda ids: encoder(ids, training=True), encoder.trainable_variables),
    }
    full = tf.random.uniform([batch, tokens], 1, tf.reduce_max(titles), tf.int32, seed=1)
    for rows, ids in (("full rows", full), ("titles", titles)):
        share = float(tf.reduce_mean(tf.cast(ids != 0, tf.float32)))
        medians = measure(ways, ids, rounds)
        print(f"{rows}, {share:.0%} of {ids.shape[0]} rows of {ids.shape[1]} are tokens")
        for name, median in medians.items():
            print(f"  {name:12} {median * 1e3:8.1f} ms")
        print(f"  ratio        {medians['backbone'] / medians['TextEncoder']:8.2f}")


def read_titles(model: Path, documents: Path, rows: int, tokens: int) -> "tf.Tensor":
    """Token ids of the first titles of a catalogue, int32 `[B, L]`."""
    import tensorflow as tf

    from q2s_tf.models import RUN_TOKENIZER
    from q2s_tf.tables import open_documents
    from q2s_tf.text import SentencePiece, normalise

    tokenizer = SentencePiece((model / RUN_TOKENIZER).read_bytes())
    first = next(iter(open_documents(documents).batches(rows)))
    return tokenizer.token_ids(normalise(tf.constant(first.column("title").to_pylist())), tokens)


def measure(ways: dict[str, Callable[["tf.Tensor"], object]], ids: "tf.Tensor", rounds: int) -> dict[str, float]:
    """The median seconds that each way takes, all in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(ids)
            if count:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    run(main)
