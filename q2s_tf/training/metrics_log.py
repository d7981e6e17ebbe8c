"""Where the figures of a run go: `metrics.jsonl` and TensorBoard."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from q2s_tf.files import atomic_write


class MetricsLog:
    """Appends a JSON object a line to `RUN/metrics.jsonl`, and the same numbers to TensorBoard, `RUN/tensorboard`."""

    def __init__(self, run: Path):
        self._path = run / "metrics.jsonl"
        self._file = self._path.open("a", encoding="utf-8")
        self._board = tf.summary.create_file_writer(str(run / "tensorboard"))

    def write(self, stage: int, step: int, values: dict[str, Any]) -> None:
        """Records numbers at a step of a stage; a line is on disk when this returns."""
        self._file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        self._file.flush()
        with self._board.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"stage{stage}/{name}", value, step)
        self._board.flush()

    def forget(self, stage: int, epoch: int) -> None:
        """Drops the lines of a stage after an epoch: those of a training that was cut short before its checkpoint."""
        lines = [line for line in self._path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if (entry := json.loads(line))["stage"] != stage or entry["epoch"] <= epoch]
        self._file.close()
        with atomic_write(self._path) as aside:
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Ends both."""
        self._file.close()
        self._board.close()
