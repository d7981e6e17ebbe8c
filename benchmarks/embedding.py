#!/usr/bin/env python
"""Documents that are embedded in a second on one core: by q2s_tf and by ONNX Runtime, from text to vector.

Both have the same text encoder, the same texts and one thread, and take turns. "q2s_tf" is what `q2s embed` does, with
all channels and the fusion. "ONNX Runtime" is the preprocessing of q2s_tf and the text encoder of all text channels as
ONNX graphs, in the same batches of similar length, without other channels, projection and fusion.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnxruntime
    import pyarrow as pa

    from q2s_tf.models import Tower


def main(
    run: Path = typer.Option(..., help="A run directory whose document tower has a text channel."),
    documents: Path = typer.Option(..., help="The catalogue."),
    rows: int = typer.Option(8_192, help="Documents of a turn, as many as are sorted by length at a time."),
    rounds: int = typer.Option(3, help="Turns of each, after one that is not counted."),
) -> None:
    """Compare the speed of embedding in bulk.

    Example: benchmarks/embedding.py --run runs/home_depot --documents runs/home_depot_data/documents.parquet
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    import onnxruntime
    import tensorflow as tf
    from embedding_onnx import build_text_encoder

    from q2s_tf.models import encode, load
    from q2s_tf.tables import open_documents

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tower = load(run).document
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(
            build_text_encoder(encoder).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        for name, encoder in tower.text_encoders.items()
    }
    batches = open_documents(documents, list(tower.input), tower.config.vector_inputs()).batches(rows)
    seconds: dict[str, list[float]] = {"q2s_tf": [], "ONNX Runtime": []}
    for number, batch in enumerate(cli.track(batches, "turns", rounds + 1)):
        begin = time.perf_counter()
        encode(tower, batch)
        middle = time.perf_counter()
        outputs = encode_with_onnx(tower, batch, sessions)
        end = time.perf_counter()
        if number == 0:
            for encoder, ids, vectors in outputs:
                some = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(ids[:, 0]))[:64])
                np.testing.assert_allclose(vectors[some], tower.text_encoders[encoder](ids[some]), atol=1e-3)
        else:
            seconds["q2s_tf"].append((middle - begin) / len(batch))
            seconds["ONNX Runtime"].append((end - middle) / len(batch))
        if number == rounds:
            break
    table = Table("one thread", "documents/s", "against ONNX Runtime", title=f"{rows:,} documents a turn")
    reference = np.median(seconds["ONNX Runtime"])
    for system, values in seconds.items():
        table.add_row(system, f"{1 / np.median(values):,.0f}", f"{reference / np.median(values):.2f}")
    Console().print(table)


def encode_with_onnx(
    tower: "Tower", batch: "pa.RecordBatch", sessions: "Mapping[str, onnxruntime.InferenceSession]"
) -> list[tuple[str, "np.ndarray", "np.ndarray"]]:
    """The encoder, the token ids `[rows, L]` and the pooled vectors `[rows, H]` of each text channel."""
    import numpy as np

    from q2s_tf.models import order_by_length
    from q2s_tf.models.plain_data import BATCH_SIZE

    inputs = tower.as_inputs(batch)
    prepared = tower.preprocessor.predict(inputs, batch_size=len(batch), verbose=0)
    order = order_by_length(inputs)
    outputs = []
    for name, channel in tower.config.text_channels("document").items():
        pieces = []
        for start in range(0, len(order), BATCH_SIZE):
            rows = prepared[name][order[start : start + BATCH_SIZE]]
            used = max(1, int((rows != 0).sum(axis=1).max()))
            pieces.append(sessions[channel.encoder].run(None, {"ids": rows[:, :used].astype(np.int64)})[0])
        outputs.append((channel.encoder, prepared[name], np.concatenate(pieces)[np.argsort(order)]))
    return outputs


if __name__ == "__main__":
    cli.run(main)
