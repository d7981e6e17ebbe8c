"""Callbacks of a stage: random state, progress, validation, metrics, the best weights, early stopping and backups.

Together with those of Keras (`EarlyStopping`, `TensorBoard`, `CSVLogger`) they make a stage that was interrupted
continue after its last complete epoch, to the same weights.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from q2s_tf.cli import console, progress_bar
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write
from q2s_tf.models import load_weights, save_weights

VALIDATION = "val_{}"
"""Name in logs of the validation metric, which chooses the best epoch."""

History = list[dict[str, Any]]
"""The epochs of a stage: `stage`, `epoch`, `step` and metrics. Epoch 0 is the validation before the stage."""


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
        validate: computes the validation metric, by its name in logs.
        pairs_per_epoch: number of pairs of an epoch, for their speed; None to leave it out.
    """

    def __init__(self, validate: Callable[[], dict[str, float]], pairs_per_epoch: int | None = None):
        super().__init__()
        self.validate, self.pairs_per_epoch = validate, pairs_per_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        """Adds the validation metric, `seconds` and `pairs_per_second`."""
        logs["seconds"] = time.perf_counter() - self.begin
        if self.pairs_per_epoch is not None:
            logs["pairs_per_second"] = self.pairs_per_epoch / logs["seconds"]
        with console.status("validating"):
            logs |= self.validate()


class EpochRecord(keras.callbacks.Callback):
    """Records every epoch of a stage in a history and in `metrics.jsonl`, and saves the weights of the best one.

    The file has one JSON object a line. Lines of epochs that an interruption has undone are removed.

    Args:
        trained: the model whose weights are saved.
        history: the complete epochs of the stage; new ones are appended.
        stage: number of the stage.
        steps: number of steps of an epoch.
        path: the `metrics.jsonl`; None to write nothing, in a worker that is not the chief.
        best: file of the weights in the best epoch.
    """

    def __init__(self, trained: keras.Model, history: History, stage: int, steps: int, path: Path | None, best: Path):
        super().__init__()
        self.trained, self.history, self.stage, self.steps = trained, history, stage, steps
        self.path, self.best = path, best

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records and prints an epoch; `InputError` if its loss is not finite."""
        entry = dict(logs or {})
        if not np.isfinite(entry["loss"]):
            raise InputError(
                f"stage {self.stage} epoch {epoch + 1}: the loss is {entry['loss']}: lower the learning rates of the "
                "stage"
            )
        self.record(epoch + 1, entry)
        metric = validation_metric(self.history)
        recall = f", batch recall@1 {entry['batch_recall@1']:.3f}" if "batch_recall@1" in entry else ""
        speed = f", {entry['pairs_per_second']:.0f} pairs/s" if "pairs_per_second" in entry else ""
        console.print(
            f"stage {self.stage} epoch {epoch + 1}: loss {entry['loss']:.4f}{recall}, validation {metric} "
            f"{entry[VALIDATION.format(metric)]:.4f}{'' if epochs_since_best(self.history) else ' (best)'}, "
            f"{entry['seconds']:.0f} s{speed}"
        )

    def record(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Appends the metrics of an epoch, saves the weights if it is the best one, and writes the file."""
        self.history.append({"stage": self.stage, "step": epoch * self.steps, "epoch": epoch, **metrics})
        if self.path is None:
            return
        if not epochs_since_best(self.history):
            self.best.parent.mkdir(exist_ok=True)
            save_weights(self.trained, self.best)
        others = [entry for entry in read_history(self.path) if entry["stage"] != self.stage]
        with atomic_write(self.path) as partial:
            partial.write_text("".join(f"{json.dumps(entry)}\n" for entry in [*others, *self.history]))


def read_history(path: Path, stage: int | None = None) -> History:
    """The entries of a `metrics.jsonl`, of one stage or of both; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [entry for line in lines if (entry := json.loads(line)) and stage in (None, entry["stage"])]


def epochs_since_best(history: History) -> int:
    """Number of epochs after the best one, of which the first counts."""
    values = validation_values(history)
    return len(values) - 1 - int(np.argmax(values))


def validation_metric(history: History) -> str:
    """The validation metric of a history."""
    prefix = VALIDATION.format("")
    return next(name.removeprefix(prefix) for name in history[0] if name.startswith(prefix))


def validation_values(history: History) -> list[float]:
    """The validation metric of each epoch of a history."""
    name = VALIDATION.format(validation_metric(history))
    return [entry[name] for entry in history]


class ResumableEarlyStopping(keras.callbacks.EarlyStopping):
    """`EarlyStopping` on the validation metric that continues from the epochs of a history, epoch 0 included."""

    def __init__(self, history: History, patience: int):
        super().__init__(monitor=VALIDATION.format(validation_metric(history)), mode="max", patience=patience)
        self.history = history

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the best value and the number of epochs since."""
        super().on_train_begin(logs)
        self.best = max(validation_values(self.history))
        self.wait = epochs_since_best(self.history)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends the stage after `patience` epochs without a better one."""
        super().on_epoch_end(epoch + 1, logs)  # that of Keras never stops after its epoch 0, the first one


class EpochBackups(keras.callbacks.Callback):
    """Backs up weights and optimizer after each epoch, and keeps the newest backup.

    A backup is a file that appears complete, so that an interruption or a full disk leaves the one before, which
    `keras.callbacks.BackupAndRestore` would overwrite. Continue with `fit(initial_epoch=backups.restore(model))`.

    Args:
        folder: folder of the backups.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def restore(self, model: keras.Model) -> int:
        """Reads the newest backup, if there is one, into a built model; returns the number of complete epochs."""
        names = [path.name.partition(".")[0] for path in self.folder.glob("*.weights.h5")]
        epochs = max((int(name) for name in names if name.isdigit()), default=None)
        if epochs is not None:
            load_weights(model, self.folder / f"{epochs}.weights.h5")
        if epochs:
            console.print(f"continuing after epoch {epochs} of {self.folder.name}")
        return epochs or 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the backup of an epoch, −1 for the beginning of the stage, and removes the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self.folder / f"{epoch + 1}.weights.h5"
        save_weights(self.model, newest)
        for path in self.folder.glob("*.weights.h5"):
            if path != newest:
                path.unlink()
