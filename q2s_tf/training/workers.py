"""Training by several processes: `tf.distribute.MultiWorkerMirroredStrategy`, configured by `TF_CONFIG`.

Every worker reads the same global batch and encodes its own share of the rows. The channel vectors of all rows are then
gathered, so that every worker computes the same loss, with the negatives, masks and hard negatives of the global batch.
A gather returns the gradient of a row to the worker that encoded it. The loss of each worker is divided by their number
and the gradients are summed, which gives the gradients of one process.

The workers share the run directory. The first one, the chief, writes; the others read.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.training.callbacks import EpochCallbackList, StepProgress

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
"""Errors in the remaining workers after one has stopped."""


def num_replicas() -> int:
    """Number of replicas of the current strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def own_rows(batch: Any) -> Any:
    """The rows of this replica of a global batch: `[B, …]` to `[B / replicas, …]`, for every tensor of a structure."""
    count = num_replicas()
    if count == 1:
        return batch
    index = tf.distribute.get_replica_context().replica_id_in_sync_group

    def share(rows: tf.Tensor) -> tf.Tensor:
        total = tf.shape(rows)[0]
        return rows[total * index // count : total * (index + 1) // count]

    return tf.nest.map_structure(share, dict(batch))


def gather(rows: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas in the order of the global batch; differentiable."""
    if num_replicas() == 1:
        return rows
    gathered = tf.distribute.get_replica_context().all_gather(rows, axis=0)
    return tf.ensure_shape(gathered, [None, *rows.shape[1:]])


class Workers:
    """The processes of a training.

    Attributes:
        count: number of processes, 1 without `TF_CONFIG`.
        index: number of this process; 0 is the chief.
        strategy: creates the variables.
    """

    def __init__(self) -> None:
        self.count, self.index = _cluster(os.environ.get("TF_CONFIG", ""))
        single = tf.distribute.get_strategy()
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy() if self.count > 1 else single

    @property
    def chief(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def fit(
        self,
        model: keras.Model,
        dataset: tf.data.Dataset,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback],
        initial_epoch: int = 0,
    ) -> None:
        """`model.fit`; with several workers a loop over the same `train_step` and callbacks.

        Keras's `fit` does not run under `MultiWorkerMirroredStrategy`: its symbolic build fails on per-replica values.
        """
        options = {"model": model, "epochs": epochs, "steps": len(dataset), "verbose": 0}
        hooks = EpochCallbackList(list(callbacks), add_history=True, **options)
        try:
            if self.count == 1:
                steps = {"epochs": epochs, "initial_epoch": initial_epoch}
                model.fit(dataset, callbacks=hooks, shuffle=False, verbose=0, **steps)
            else:
                self._fit_replicas(model, dataset, range(initial_epoch, epochs), hooks)
        finally:
            for callback in callbacks:
                if isinstance(callback, StepProgress):
                    callback.close()

    def _fit_replicas(
        self, model: keras.Model, dataset: tf.data.Dataset, epochs: range, hooks: keras.callbacks.CallbackList
    ) -> None:
        @tf.function(input_signature=[dataset.element_spec], autograph=False)
        def step(batch: Any) -> Any:
            return self.strategy.run(model.train_step, args=(batch,))

        model.stop_training = False
        hooks.on_train_begin()
        for epoch in epochs:
            model.reset_metrics()
            hooks.on_epoch_begin(epoch)
            for number, batch in enumerate(dataset):
                hooks.on_train_batch_begin(number)
                step(batch)
                hooks.on_train_batch_end(number)
            hooks.on_epoch_end(epoch, {metric.name: float(metric.result()) for metric in model.metrics})
            if model.stop_training:
                break
        hooks.on_train_end()

    def broadcast(self, compute: Callable[[], float]) -> float:
        """The result of `compute` in the chief, for every worker. Also a barrier."""
        if self.count == 1:
            return compute()
        value = tf.constant(compute() if self.chief else 0.0, tf.float64)

        @tf.function
        def add() -> Any:
            return self.strategy.run(
                lambda: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
            )

        return float(self.strategy.experimental_local_results(add())[0])

    def barrier(self) -> None:
        """Waits for every worker."""
        self.broadcast(lambda: 0.0)

    @contextmanager
    def lost_worker_errors(self) -> Iterator[None]:
        """Turns the loss of another worker into one `InputError`."""
        try:
            yield
        except LOST as error:
            if self.count == 1:
                raise
            raise InputError(
                f"worker {self.index} of {self.count}: another worker stopped or cannot be reached; training cannot "
                f"go on: start every worker again with --resume ({(error.message.splitlines() or ['?'])[0]:.200})"
            ) from error


def _cluster(text: str) -> tuple[int, int]:
    """Number of workers in `TF_CONFIG` and the index of this process; (1, 0) when it is not set."""
    if not text:
        return 1, 0
    try:
        config = json.loads(text)
        count, index = len(config["cluster"].pop("worker")), int(config["task"]["index"])
        if config["cluster"] or config["task"]["type"] != "worker" or not 0 <= index < count:
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(
            'TF_CONFIG: must be {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": N}} with '
            f"N counted from 0; got {text:.200}"
        ) from None
    return count, index
