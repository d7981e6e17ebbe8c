"""Time of a query tower from the text of one query to its embedding, on one thread."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.models import load
from q2s_tf.server.servable import Servable
from q2s_tf.server.server_config import RequestLimits
from q2s_tf.serving.tower_servable import TowerServable

ROUNDS = 5
"""How often each query is timed."""
ENVIRONMENT = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""Variables of the process that measures: one thread, and no oneDNN, as in `q2s serve`."""


def query_seconds(runs: Sequence[Path], queries: Sequence[str]) -> list[float]:
    """Median seconds for one query with the query tower of each run, measured in a process of one thread.

    The towers are exported and run as the embedded server does. They take turns at each query.
    """
    command = [sys.executable, "-m", __name__, *map(str, runs)]
    environment, asked = {**os.environ, **ENVIRONMENT}, json.dumps(queries)
    done = subprocess.run(command, input=asked, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(runs: Sequence[Path], queries: Sequence[str]) -> list[float]:
    embed = [_exported(run) for run in runs]
    seconds = np.zeros((len(runs), ROUNDS + 1, len(queries)))
    for repeat, number, run in np.ndindex(ROUNDS + 1, len(queries), len(runs)):
        start = time.perf_counter()
        embed[run](queries[number])
        seconds[run, repeat, number] = time.perf_counter() - start
    return np.median(seconds[:, 1:], axis=(1, 2)).tolist()  # the first round is a warm-up


def _exported(run: Path) -> Callable[[str], Any]:
    """The exported query tower of a run, as a function of a query."""
    tower = TowerServable(load(run).query)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tower, folder, tower.endpoints)
        signature = Servable("query_tower", 1, Path(folder)).signature("")
    empty, limits = tf.make_tensor_proto([b""]), RequestLimits()
    inputs = dict.fromkeys(signature.inputs, empty)
    return lambda query: signature.run({**inputs, "query": tf.make_tensor_proto([query.encode()])}, (), limits)


if __name__ == "__main__":
    print(json.dumps(_measure([Path(run) for run in sys.argv[1:]], json.load(sys.stdin))))
