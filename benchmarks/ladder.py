#!/usr/bin/env python
"""Gain of each technique of Que2Search: the rows of the paper's Table 4, and attention against concatenation.

The config is the full model, and a row has the techniques up to its own. The last two rows are the control of the
curriculum, the full model whose stage 2 has the loss of stage 1, and the full model with another fusion. The country of
the searcher and the language and country of the document are in every row; the paper's table has no row for them. The
rows up to "+ curriculum" train the text encoders at the common learning rate. A row and the next one, if that only adds
stage 2, are the two stages of one training.

`OUT/ladder.json` has the figures of every seed; `OUT/ladder.md` and `OUT/ladder.svg` are the table and the chart.
"""

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from comparisons import comparison
from ladder_results import METRICS, draw, markdown, summarise, table
from ladder_rows import TRAININGS, ablate, check_full, rows_of
from rich.console import Console
from typer import Option

from q2s_tf import cli
from q2s_tf.config import Config
from q2s_tf.config_files import check_config, read_config
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write

FIGURES = "figures.json"
"""File of a training that has ended: what `train_row` returns."""


class Data(NamedTuple):
    """The tables of the data contract."""

    documents: Path
    positives: Path
    validation: Path
    test: Path


def train_row(config: Config, data: Data, folder: Path) -> dict[str, Any]:
    """Trains one config, unless its figures are there, and measures each stage on the test judgements.

    Args:
        config: what to train.
        data: the tables.
        folder: of this training; what it returns is left there as `FIGURES`, what was printed as `training.log`.

    Returns:
        `config`, `seconds`, `validation` (ROC AUC of each epoch) and `metrics`, both by stage.
    """
    from q2s_tf.training import train

    run, figures = folder / "run", folder / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    resume = (run / "config.toml").is_file()
    techniques = TRAININGS[folder.parent.name].techniques
    with (folder / "training.log").open("a", encoding="utf-8") as log, redirect_stderr(log), comparison(techniques):
        train(config, data.documents, data.positives, data.validation, run, resume=resume)
        stages = (1, 2) if config.stage2.max_epochs else (1,)
        metrics = {str(stage): measure_stage(run, stage, data) for stage in stages}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    validation = {s: [each["val_roc_auc"] for each in lines if str(each["stage"]) == s] for s in metrics}
    found = {
        "config": config.model_dump(mode="json"),
        "seconds": time.monotonic() - begin,
        "validation": validation,
        "metrics": metrics,
    }
    with atomic_write(figures) as aside:
        aside.write_text(json.dumps(found, indent=1), encoding="utf-8")
    shutil.rmtree(run)  # hundreds of megabytes, and the figures are what it was for
    return found


def measure_stage(run: Path, stage: int, data: Data) -> dict[str, float]:
    """`METRICS` of one stage of a run, by the project's evaluator."""
    from q2s_tf.evaluation.collection import (
        MODEL,
        choose_grades,
        embed_collection,
        rank_documents,
        read_judged,
        score_documents,
    )
    from q2s_tf.evaluation.metrics import as_run
    from q2s_tf.evaluation.system_metrics import measure_systems
    from q2s_tf.models import load

    towers = load(run, stage)
    grades = choose_grades(towers.config, None, None)
    judged, _ = read_judged(data.documents, data.test, None, 0, grades)
    scores, retrieved = rank_documents(judged, score_documents(embed_collection(towers, data.documents, judged, None)))
    metrics = measure_systems(judged, grades, None, scores, {MODEL: as_run(retrieved[MODEL])})
    values = metrics.values(MODEL)
    return {metric: values[metric] for metric in METRICS if metric in values}


def main(
    data: Annotated[Path, Option(help="Folder with documents, positives, judgements_validation and --test, Parquet.")],
    config: Annotated[Path, Option(help="The full model, for example configs/marketplace.toml.")],
    out: Annotated[Path, Option(help="Folder of the results; what is there already is not trained again.")],
    seeds: Annotated[str, Option(help="Seeds, with commas between them.")] = "17,18,19",
    test: Annotated[str, Option(help="File of the folder that the figures come from.")] = "judgements_test.parquet",
    trainings: Annotated[str, Option("--rows", help=f"Some of {','.join(TRAININGS)}; all when empty.")] = "",
    set_: Annotated[list[str], Option("--set", help="Another value for a key of the config.")] = [],  # noqa: B006
    processes: Annotated[int, Option(min=1, help="Trainings beside each other; each has its share of the cores.")] = 1,
    title: Annotated[str, Option(help="Of the chart; the name of the folder when empty.")] = "",
) -> None:
    """Train every row with every seed, and tell what each technique adds.

    Example: benchmarks/ladder.py --data demo/data --config configs/marketplace.toml --out runs/ladder --processes 2
    """
    full = read_config(config, set_)
    check_full(full)
    tables = Data(
        *(data / name for name in ("documents.parquet", "positives.parquet", "judgements_validation.parquet", test))
    )
    for path in tables:
        if not path.is_file():
            raise InputError(f"--data {data}: needs the file {path.name}")
    rows = rows_of(full)
    names = _chosen(trainings, [row.training for row in rows])
    jobs = {
        (name, seed): ablate(full, TRAININGS[name], seed) for seed in _numbers(seeds) for name in names
    }  # seed by seed, so that a whole ladder is there early
    figures = train_all(jobs, tables, out, processes)
    found = {"title": title or data.resolve().name, "rows": summarise(rows, figures)}
    with atomic_write(out / "ladder.json") as aside:
        aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with atomic_write(out / "ladder.md") as aside:
        aside.write_text(markdown(found), encoding="utf-8")
    with atomic_write(out / "ladder.svg") as aside:
        aside.write_text(draw(found), encoding="utf-8")
    Console().print(table(found))


def train_all(
    jobs: dict[tuple[str, int], Config], data: Data, out: Path, processes: int
) -> dict[tuple[str, int], dict[str, Any]]:
    """The figures of every job by training and seed, from `OUT/TRAINING/SEED`; each that is not there is trained."""
    folders = {job: out / job[0] / str(job[1]) for job in jobs}
    done = {job: json.loads((folders[job] / FIGURES).read_text()) for job in jobs if (folders[job] / FIGURES).is_file()}
    for job, figures in done.items():
        if check_config(figures["config"], str(folders[job])) != jobs[job]:
            raise InputError(f"--out {folders[job]}: was trained with another config: give another --out, or delete it")
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    os.environ.update(TF_NUM_INTRAOP_THREADS=threads, TF_NUM_INTEROP_THREADS=threads, OMP_NUM_THREADS=threads)
    # A process a training: TensorFlow gives no memory back.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with pool, cli.progress_bar() as bar:
        task = bar.add_task("trainings", total=len(jobs), completed=len(done))
        waiting = {pool.submit(train_row, jobs[job], data, folders[job]): job for job in jobs if job not in done}
        try:
            for future in as_completed(waiting):
                done[waiting[future]] = future.result()
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return done


def _chosen(names: str, known: list[str]) -> list[str]:
    known = list(dict.fromkeys(known))
    chosen = [name.strip() for name in names.split(",") if name.strip()] or known
    if unknown := set(chosen) - set(known):
        raise InputError(f"--rows {', '.join(sorted(unknown))}: must be some of {', '.join(known)}")
    return chosen


def _numbers(text: str) -> Iterable[int]:
    try:
        return dict.fromkeys(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--seeds {text}: must be whole numbers with commas between them") from None


if __name__ == "__main__":
    cli.run(main)
