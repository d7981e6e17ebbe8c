"""Several processes that train one model: `tf.distribute.MultiWorkerMirroredStrategy`, set up by `TF_CONFIG`."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from q2s_tf.errors import InputError

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
"""What TensorFlow raises in the workers that are left when another one has gone."""


class Workers:
    """The processes of a training, of which this one is number `index`.

    Every worker reads the same global batch, encodes its own share of the rows, and gathers the channel vectors of all:
    from there on all compute the same losses, so the negatives, the masks and the mined documents are those of the
    global batch. A gather hands the gradient of a row back to the worker that encoded it; each worker's loss is divided
    by their number and the gradients are summed, which makes them those of one process.

    The workers share the run directory. The first one, the chief, writes; the others read.

    Attributes:
        count: how many they are, 1 without `TF_CONFIG`.
        index: 0 is the chief.
        strategy: places the variables.
    """

    def __init__(self) -> None:
        self.count, self.index = _cluster(os.environ.get("TF_CONFIG", ""))
        one = tf.distribute.get_strategy()
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy() if self.count > 1 else one

    @property
    def chief(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def run(self, function: Callable[..., Any], batch: Any) -> Any:
        """Calls a step's function on a batch, in the strategy's replica context where there are several workers."""
        return self.strategy.run(function, args=(batch,)) if self.count > 1 else function(batch)

    def share(self, rows: Any) -> Any:
        """This worker's rows of a global batch: `[B, …]` to `[B / count, …]`, for every tensor of a structure."""
        if self.count == 1:
            return rows
        return tf.nest.map_structure(self._share, rows)

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """All workers' rows in the order of the global batch; differentiable. Inside `run` only."""
        if self.count == 1:
            return rows
        gathered = tf.distribute.get_replica_context().all_gather(rows, axis=0)
        return tf.ensure_shape(gathered, [None, *rows.shape[1:]])

    def sum(self, gradients: list[Any]) -> list[Any]:
        """The sums of gradients over the workers. Inside `run` only."""
        if self.count == 1:
            return gradients
        return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients))

    def agree(self, compute: Callable[[], float]) -> float:
        """What the chief computes, in every worker: they must take the same decisions. Also a barrier."""
        if self.count == 1:
            return compute()
        value = tf.constant(compute() if self.chief else 0.0, tf.float64)

        @tf.function
        def add() -> Any:
            return self.strategy.run(
                lambda: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
            )

        return float(self.strategy.experimental_local_results(add())[0])

    def wait(self) -> None:
        """Returns when every worker has come here."""
        self.agree(lambda: 0.0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turns the loss of another worker into one clear error."""
        try:
            yield
        except LOST as error:
            if self.count == 1:
                raise
            raise InputError(
                f"worker {self.index} of {self.count}: another worker stopped or cannot be reached; training cannot "
                f"go on: start every worker again with --resume ({(error.message.splitlines() or ['?'])[0]:.200})"
            ) from error

    def _share(self, rows: tf.Tensor) -> tf.Tensor:
        total = tf.shape(rows)[0]
        return rows[total * self.index // self.count : total * (self.index + 1) // self.count]


def _cluster(text: str) -> tuple[int, int]:
    """How many workers `TF_CONFIG` names, and which of them this process is; (1, 0) when it is not set.

    Raises:
        InputError: it is not what TensorFlow reads, or names another kind of task.
    """
    if not text:
        return 1, 0
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        index = int(task["index"])
        if task["type"] != "worker" or set(config["cluster"]) != {"worker"} or not 0 <= index < len(workers):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            'TF_CONFIG: must be {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": N}} with '
            f"N counted from 0; got {text:.200}"
        ) from None
    return len(workers), index
