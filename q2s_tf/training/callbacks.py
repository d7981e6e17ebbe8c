"""Callbacks of a stage: order of the batches, validation, metrics, progress, early stopping and backups.

Together with those of Keras (`EarlyStopping`, `ModelCheckpoint`, `BackupAndRestore`, `TensorBoard`, `CSVLogger`) they
make a stage that was interrupted continue after its last complete epoch, to the same weights.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from q2s_tf.cli import console, progress_bar
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write

METRIC = "val_roc_auc"
"""The metric that chooses the best epoch."""


class EpochNumber(keras.callbacks.Callback):
    """Sets all that is random in an epoch by its number, so that a resumed epoch is the same as an uninterrupted one.

    Attributes:
        number: number of the current epoch, from 1, for the seed of `Examples.dataset`.
    """

    number = 1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the number before the data set of the epoch is iterated, and the random state of dropout."""
        self.number = epoch + 1
        for variable in self.model.non_trainable_variables:
            if variable.name == "seed_generator_state":  # weights files do not hold it
                variable.assign([int(variable.numpy()[0]), epoch << 32])


class StepProgress(keras.callbacks.Callback):
    """A progress bar of the steps of a fit. It reads no metric, so that no step waits for the device."""

    def __init__(self, title: str, epochs: int):
        super().__init__()
        self.title, self.epochs = title, epochs
        self.bar = progress_bar(transient=True)

    def on_train_begin(self, logs: Any = None) -> None:
        """Shows the bar."""
        self.task = self.bar.add_task(self.title, total=self.params["steps"] * self.epochs)
        self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts the epochs before this one."""
        self.bar.update(self.task, completed=epoch * self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts a step."""
        self.bar.advance(self.task)

    def close(self) -> None:
        """Removes the bar and shows the cursor again; also after an error, when Keras does not call `on_train_end`."""
        self.bar.stop()


class EpochCallbackList(keras.callbacks.CallbackList):
    """A `CallbackList` that passes metrics at the end of an epoch only.

    That of Keras copies every metric from the device after each step if any callback counts steps.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Calls the callbacks without metrics."""
        super().on_train_batch_end(batch)


class EpochMetrics(keras.callbacks.Callback):
    """Adds the validation metric and the speed to the logs of an epoch, for the callbacks after this one.

    Args:
        validate: computes `val_roc_auc`.
        pairs_per_epoch: number of rows of an epoch, for the speed; None to leave it out.
    """

    def __init__(self, validate: Callable[[], float], pairs_per_epoch: int | None = None):
        super().__init__()
        self.validate, self.pairs_per_epoch = validate, pairs_per_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        """Adds `seconds`, `pairs_per_second` and `val_roc_auc`."""
        seconds = time.perf_counter() - self.begin
        with console.status("validating"):
            logs[METRIC] = self.validate()
        if self.pairs_per_epoch is not None:
            logs |= {"seconds": seconds, "pairs_per_second": self.pairs_per_epoch / seconds}


class EpochHistory(keras.callbacks.Callback):
    """The metrics of every epoch of a stage, in `metrics.jsonl` and in memory.

    The file has one JSON object a line, with `stage`, `epoch`, `step` and the metrics. Epoch 0 is the validation before
    the stage. Lines of epochs that an interruption has undone are removed when the stage begins.

    Args:
        path: the file, None to keep the metrics in memory only.
        stage: number of the stage.
        steps_per_epoch: number of steps of an epoch.
        epochs: completed epochs of the stage.
    """

    def __init__(self, path: Path | None, stage: int, steps_per_epoch: int, history: list[dict[str, Any]]):
        super().__init__()
        self.path, self.stage, self.steps_per_epoch, self.history = path, stage, steps_per_epoch, history

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records an epoch and prints it; `InputError` if its loss is not finite."""
        loss = (logs or {}).get("loss", np.nan)
        if not np.isfinite(loss):
            raise InputError(
                f"stage {self.stage} epoch {epoch + 1}: the loss is {loss}: lower the learning rates of the stage"
            )
        self.record(epoch + 1, dict(logs or {}))
        entry = self.history[-1]
        best = " (best)" if entry[METRIC] > max(old[METRIC] for old in self.history[:-1]) else ""
        console.print(
            f"stage {self.stage} epoch {epoch + 1}: loss {entry['loss']:.4f}, batch recall@1 "
            f"{entry['batch_recall@1']:.3f}, validation ROC AUC {entry[METRIC]:.4f}{best}, {entry['seconds']:.0f} s, "
            f"{entry['pairs_per_second']:.0f} pairs/s"
        )

    def record(self, epoch: int, values: dict[str, Any]) -> None:
        """Appends the metrics of an epoch and writes the file."""
        step = epoch * self.steps_per_epoch
        self.history.append({"stage": self.stage, "step": step, "epoch": epoch, **values})
        if self.path is not None:
            others = [entry for entry in read_history(self.path) if entry["stage"] != self.stage]
            with atomic_write(self.path) as partial:
                partial.write_text("".join(f"{json.dumps(entry)}\n" for entry in [*others, *self.history]))


def read_history(path: Path, stage: int | None = None) -> list[dict[str, Any]]:
    """The entries of a `metrics.jsonl`, of one stage or of both; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [entry for line in lines if (entry := json.loads(line)) and stage in (None, entry["stage"])]


def epochs_since_best(history: list[dict[str, Any]]) -> int:
    """Number of epochs after the best one."""
    values = [entry[METRIC] for entry in history]
    return len(values) - 1 - int(np.argmax(values))


class ResumableEarlyStopping(keras.callbacks.EarlyStopping):
    """`EarlyStopping` on the validation metric that continues from the epochs of a history, epoch 0 included.

    The best weights are kept by a `ModelCheckpoint`, whose file survives an interruption.
    """

    def __init__(self, history: list[dict[str, Any]], patience: int):
        super().__init__(monitor=METRIC, mode="max", patience=patience)
        self.history = history

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the best value and the number of epochs since."""
        super().on_train_begin(logs)
        self.best = max(entry[METRIC] for entry in self.history)
        self.wait = epochs_since_best(self.history)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends the stage after `patience` epochs without a better one."""
        super().on_epoch_end(epoch + 1, logs)  # that of Keras never stops after its epoch 0, the first one


class TowersCheckpoint(keras.callbacks.ModelCheckpoint):
    """`ModelCheckpoint` of the towers of a `RetrievalModel`, with the weights of the best epoch.

    The file is complete whenever the process ends.

    Args:
        path: the weights file.
        best: value of the metric that an epoch must exceed.
    """

    def __init__(self, path: Path, best: float):
        options = {"save_best_only": True, "save_weights_only": True, "initial_value_threshold": best}
        self.path, self.partial = path, path.with_name(f"partial.{path.name}")
        self.partial.unlink(missing_ok=True)
        super().__init__(str(self.partial), monitor=METRIC, mode="max", **options)

    def set_model(self, model: keras.Model) -> None:
        """Sets the model whose weights are saved."""
        super().set_model(model.towers)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves the weights if the epoch is the best one."""
        super().on_epoch_end(epoch, logs)
        if self.partial.exists():
            os.replace(self.partial, self.path)


class EpochBackups(keras.callbacks.Callback):
    """`BackupAndRestore` in a folder for each epoch, so that a backup is complete or absent whenever a process ends.

    Args:
        folder: folder of the backups; the newest one is kept.
        write: whether this process writes; the chief of several workers does.
    """

    def __init__(self, folder: Path, write: bool = True):
        super().__init__()
        self.folder, self.write = folder, write

    def newest(self) -> int | None:
        """Number of the last complete epoch with a backup, 0 for the beginning of the stage, None without a backup."""
        return max((int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()), default=None)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores weights, optimizer and the number of the epoch."""
        epoch = self.newest()
        if epoch is None:
            return
        try:
            self._backup(str(epoch)).on_train_begin()
        except (OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise InputError(
                f"backup {self.folder / str(epoch)}: damaged, or of another model ({reason}): delete {self.folder} to "
                "begin the stage again"
            ) from error
        if epoch:
            console.print(f"continuing after epoch {epoch} of {self.folder.name}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes a backup and removes the one before."""
        if not self.write:
            return
        shutil.rmtree(self.folder / "partial", ignore_errors=True)
        self._backup("partial").on_epoch_end(epoch)
        shutil.rmtree(self.folder / str(epoch + 1), ignore_errors=True)
        os.replace(self.folder / "partial", self.folder / str(epoch + 1))
        for path in self.folder.iterdir():
            if path.name != str(epoch + 1):
                shutil.rmtree(path)

    def _backup(self, name: str) -> keras.callbacks.BackupAndRestore:
        backup = keras.callbacks.BackupAndRestore(str(self.folder / name), delete_checkpoint=False)
        backup.set_model(self.model)
        return backup
