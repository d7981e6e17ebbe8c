"""Where the figures of a run go: `metrics.jsonl` and TensorBoard."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf


class MetricsLog:
    """Appends a JSON object a line to `RUN/metrics.jsonl`, and the same numbers to TensorBoard, `RUN/tensorboard`."""

    def __init__(self, run: Path):
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = tf.summary.create_file_writer(str(run / "tensorboard"))

    def write(self, stage: int, step: int, values: dict[str, Any]) -> None:
        """Records numbers at a step of a stage; a line is on disk when this returns."""
        self._file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        self._file.flush()
        with self._board.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"stage{stage}/{name}", value, step)
        self._board.flush()

    def close(self) -> None:
        """Ends both."""
        self._file.close()
        self._board.close()
