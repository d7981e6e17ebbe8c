"""The results of an evaluation, and the files that hold them; docs/api/evaluation.md describes the files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from q2s_tf.cli import printable
from q2s_tf.errors import InputError
from q2s_tf.evaluation.collection import Collection, Grades
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.resampling import LEVEL, RESAMPLES, TEST_RESAMPLES
from q2s_tf.evaluation.system_metrics import SystemMetrics
from q2s_tf.files import atomic_write


@dataclass
class RunEvaluation(Collection):
    """An embedded test collection (see `Collection`) and what was measured on it.

    Attributes:
        run: the run directory.
        grades: the lowest relevant grade in ROC AUC, and in recall and MRR.
        metrics: the metrics of every system.
        retrieved: by system the first 100 documents of each query, int `[Q, 100]`: rows of the catalogue, then −1.
        query_slices: by slicing the slice of each query, `[Q]`.
        results: the content of `metrics.json`.
    """

    run: Path
    grades: Grades
    metrics: SystemMetrics
    retrieved: dict[str, np.ndarray]
    query_slices: dict[str, np.ndarray]
    results: dict[str, Any]


def describe(collection: Collection, grades: Grades) -> dict[str, Any]:
    """The entries of `metrics.json` about the data: sizes, rows and queries left out, thresholds, negatives."""
    judged, later = collection.judged, collection.later
    return {
        "sizes": {
            "queries": len(np.unique(judged.query)),
            "pairs": len(judged.query),
            "relevant_pairs": int(judged.relevant(grades[0]).sum()),
            "left_out_pairs": sum(judged.left_out.values()),
            "documents": len(collection.documents),
            "later_queries": len(np.unique(later.query)) if later else 0,
            "later_pairs": len(later.query) if later else 0,
        },
        "left_out": judged.left_out,
        "without_ndcg": judged.without_ndcg(),
        "thresholds": {
            "relevant_at": grades[0] if judged.rated else None,
            "recall_relevant_at": grades[1] if judged.rated else None,
        },
        "negatives": "rated" if judged.rated else "sampled",
        "bootstrap": {"resamples": RESAMPLES, "test_resamples": TEST_RESAMPLES, "level": LEVEL},
    }


def check_out(out: Path) -> None:
    """Raises `InputError` if the output folder is a file, or cannot be written."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: must be a folder; it is a file")
    with _temporary_folder(out):
        pass


@contextmanager
def replace_files(out: Path) -> Iterator[Path]:
    """Writes the files of an output folder together or not at all.

    Yields a temporary folder, whose files replace those of the output folder at the end of the block. After an
    exception the output folder is unchanged.

    Raises:
        InputError: the files cannot be written.
    """
    with _temporary_folder(out) as folder:
        yield folder
        out.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            os.replace(path, out / path.name)


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A folder in the output folder, or in the nearest folder above that exists; an error becomes an `InputError`."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        with TemporaryDirectory(prefix=".partial.", dir=existing) as folder:
            yield Path(folder)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"--out {out}: cannot be written: {reason}: free space, or give another folder") from None


def write_evaluation(evaluation: RunEvaluation, folder: Path) -> None:
    """Writes `metrics.json` and `per_query.parquet`."""
    write_json(evaluation.results, folder / "metrics.json")
    write_per_query(evaluation.judged, evaluation.metrics, evaluation.query_slices, folder / "per_query.parquet")


def write_json(results: dict[str, Any], path: Path) -> None:
    """Writes results as JSON, atomically."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def write_per_query(judged: Judgements, metrics: SystemMetrics, slices: dict[str, np.ndarray], path: Path) -> None:
    """Writes one row per query, atomically, in the layout of `per_query.parquet`."""
    columns: dict[str, Any] = {**judged.queries, **{f"slice/{name}": labels for name, labels in slices.items()}}
    columns["judged_pairs"] = np.bincount(metrics.query, minlength=metrics.num_queries)
    columns["relevant_pairs"] = np.bincount(metrics.query[metrics.relevant], minlength=metrics.num_queries)
    for system, by_metric in metrics.per_query.items():
        for metric, values in by_metric.items():
            columns[f"{system}/{metric}"] = pa.array(values, from_pandas=True)  # NaN becomes null
    with atomic_write(path) as aside:
        pq.write_table(pa.table(columns), aside)


def metrics_table(results: dict[str, Any]) -> RichTable:
    """The figures of `metrics.json` as a table for the console: one row a system, with half of each interval."""
    basis, sizes, grades = "later positives and sampled negatives", results["sizes"], results["thresholds"]
    if results["negatives"] == "rated":
        basis = f"relevant from grade {grades['relevant_at']:g}, for recall from {grades['recall_relevant_at']:g}"
    title = f"{sizes['pairs']:,} pairs of {sizes['queries']:,} queries, {sizes['documents']:,} documents\n{basis}"
    shared, own = split_metrics(results["systems"])
    notes = ["± half of the 95 % interval over queries"]
    if results["encoder"]:
        notes.append(f"encoder: {results['encoder']['preset']}, unmodified")
    notes += [f"{metric} of {name}: {_with_width(results['systems'][name][metric])}" for metric, name in own.items()]
    notes += [f"{count:,} queries have no nDCG: {why}" for why, count in results["without_ndcg"].items()]
    table = RichTable(
        title=title, caption=Text("\n").join(map(printable, notes)), min_width=60, box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for metric in shared:
        # Spaces, because a narrow console breaks lines at them.
        table.add_column(metric.replace("later_", "later ").replace("@", " @"), justify="right")
    for name, figures in results["systems"].items():
        table.add_row(name, *(_with_width(figures[metric]) if metric in figures else "–" for metric in shared))
    return table


def split_metrics(systems: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The metrics that several systems have, and those that only one has, with its name."""
    owners: dict[str, list[str]] = {}
    for name, figures in systems.items():
        for metric in figures:
            owners.setdefault(metric, []).append(name)
    own = {metric: names[0] for metric, names in owners.items() if len(names) == 1}
    return [metric for metric in owners if metric not in own], own


def _with_width(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} ±{(figure['high'] - figure['low']) / 2:.3f}"
