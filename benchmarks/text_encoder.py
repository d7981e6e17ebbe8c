#!/usr/bin/env python
"""How long a text encoder takes in training, as `TextEncoder` computes it and as the backbone of KerasHub does.

Both have the same weights and give the same [CLS] (see tests/test_layers.py). They run in turn, forward and backward,
with dropout; the medians and their ratio are printed.
"""

import statistics
import time
from collections.abc import Callable

import typer

from q2s_tf.cli import run


def main(
    layers: int = typer.Option(2, help="Transformer layers."),
    batch: int = typer.Option(512, help="Rows."),
    tokens: int = typer.Option(32, help="Tokens a row."),
    rounds: int = typer.Option(10, help="Times that each is run, after one that is not counted."),
) -> None:
    """Compare the two ways to compute [CLS] in training.

    Example: benchmarks/text_encoder.py --layers 2 --batch 512 --tokens 32
    """
    import tensorflow as tf

    from q2s_tf.layers import TextEncoder

    encoder = TextEncoder(8_000, tokens, layers, 4, 128, 384, 0.1)
    ids = tf.random.uniform([batch, tokens], 3, 8_000, tf.int32, seed=1)
    there = tf.ones_like(ids)

    def step(forward: Callable[[], tf.Tensor]) -> Callable[[], object]:
        def gradients() -> object:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward() ** 2)
            return tape.gradient(loss, encoder.trainable_variables)

        return tf.function(gradients, autograph=False)

    encoder(ids)
    ways = {
        "backbone": step(lambda: encoder.backbone({"token_ids": ids, "padding_mask": there}, training=True)[:, 0]),
        "TextEncoder": step(lambda: encoder(ids, training=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if count:
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:12} {median * 1e3:8.1f} ms")
    print(f"ratio        {medians['backbone'] / medians['TextEncoder']:8.2f}")


if __name__ == "__main__":
    run(main)
