#!/usr/bin/env python
"""Which validation metric chooses the best epoch of a run from few queries.

The config is trained on the random subsets of small_data.py. After each epoch, epoch 0 included, the validation
metrics are computed on the validation part of the subset. The run is measured on the test queries over the whole
catalogue, with its embeddings alone and with BM25 at a fixed weight. Each metric then chooses an epoch of each subset.
The last row takes the best epoch of each test metric.
"""

import json
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from small_data import Experiment

from q2s_tf import cli, find_config
from q2s_tf.config import Config, Evaluation
from q2s_tf.config_files import read_config
from q2s_tf.evaluation.collection import rank_documents
from q2s_tf.evaluation.metrics import as_run
from q2s_tf.evaluation.rankers import LexicalPart, cosine_rows
from q2s_tf.evaluation.system_metrics import measure_systems
from q2s_tf.models import encode
from q2s_tf.tables import open_judgements
from q2s_tf.training import RetrievalModel, compile_stage, prepare_training
from q2s_tf.training.hard_negatives import HardNegatives
from q2s_tf.training.validation import Validation, read_validation

VALIDATION_METRICS = get_args(Evaluation.model_fields["validation_metric"].annotation)
SYSTEMS = {"embeddings": 0.0, "hybrid": 0.5}
"""The measured systems, with the weight of BM25."""


class EpochMeasures(keras.callbacks.Callback):
    """Measures the towers before the first epoch and after each one.

    Args:
        experiment: the catalogue and the test queries.
        validations: the validation metrics by name.
    """

    def __init__(self, experiment: Experiment, validations: dict[str, Validation]):
        super().__init__()
        self.experiment, self.validations = experiment, validations
        self.epochs: list[dict[str, dict[str, float]]] = []
        part = LexicalPart(experiment.table, experiment.columns)
        self.lexical = list(part.rows(experiment.judged.queries["query"]))

    def on_train_begin(self, logs: Any = None) -> None:
        """Measures epoch 0."""
        self.measure()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Measures the epoch."""
        self.measure()

    def measure(self) -> None:
        """Appends the validation metrics and the test metrics of both systems."""
        chosen = {name: validation.value() for name, validation in self.validations.items()}
        judged = self.experiment.judged
        vectors = self.validations["recall@100"].embed_documents()
        queries = encode(self.model.towers.query, judged.queries)["embedding"]
        scores: dict[str, np.ndarray] = {}
        ranked = {}
        for system, weight in SYSTEMS.items():
            pairs = zip(cosine_rows(queries, vectors), self.lexical, strict=True)
            rows = ({system: cosines + weight * words} for cosines, words in pairs)
            scored, retrieved = rank_documents(judged, rows, system)
            scores |= scored
            ranked[system] = as_run(retrieved[system])
        measured = measure_systems(judged, self.experiment.grades, None, scores, ranked)
        tests = {system: measured.values(system) for system in ranked}
        self.epochs.append({"validation": chosen, **tests})


def measure_subset(experiment: Experiment, size: str, number: int, epochs: int, out: Path) -> list[Any]:
    """The measures of each epoch of a training on one subset."""
    validation = experiment.draw_validation(size, number, out)
    positives = experiment.draw("positives.parquet", size, number, out)
    stage1 = experiment.config.stage1.model_copy(update={"max_epochs": epochs})
    config = experiment.config.model_copy(update={"stage1": stage1})
    towers, head, examples, _, _ = prepare_training(config, experiment.documents, positives, validation, out / "run")
    validations = {}
    for metric in VALIDATION_METRICS:
        settings = config.evaluation.model_copy(update={"validation_metric": metric})
        judged, relevant = read_validation(
            open_judgements(validation), experiment.ids, config.model_copy(update={"evaluation": settings})
        )
        folder = out / f"validation-{metric}"
        validations[metric] = Validation(towers, judged, relevant, examples.documents, folder, metric)
    model = RetrievalModel(towers, head)
    compile_stage(model, 1, examples.steps_per_epoch(stage1.batch_size))
    measures = EpochMeasures(experiment, validations)
    embeddings = validations["recall@100"].embed_documents
    mined = HardNegatives(towers, examples, (config.seed, 1), embeddings=embeddings)
    dataset = examples.dataset(stage1.batch_size, (config.seed, 1), hard_negatives=mined.rows)
    model.fit(dataset, epochs=epochs, callbacks=[measures, mined], verbose=0)
    return measures.epochs


def main(
    data: Path = typer.Option(..., help="Folder of tools/import_dataset.py."),
    out: Path = typer.Option(..., help="Folder for the runs and their measures; finished subsets are kept."),
    config: str = typer.Option("own_data", help="The config of the runs."),
    sizes: str = typer.Option("50,200,all", help="Numbers of training queries."),
    subsets: int = typer.Option(3, help="Subsets of each size; all has one."),
    epochs: int = typer.Option(3, help="Epochs of each training."),
    relevant_at: float = typer.Option(2.33, help="Grade of a relevant document."),
    recall_relevant_at: float = typer.Option(2.67, help="The same for recall and MRR."),
) -> None:
    """Train on every subset, and print the test metrics of the epochs that each validation metric chooses.

    Example: benchmarks/validation_metric.py --data runs/home_depot_4000 --out runs/validation_metric
    """
    grades = [f"evaluation.relevant_at={relevant_at}", f"evaluation.recall_relevant_at={recall_relevant_at}"]
    settings: Config = read_config(find_config(config), grades)
    experiment = Experiment(data, settings, (relevant_at, recall_relevant_at))
    measured: dict[str, list[list[Any]]] = {}
    for size in sizes.split(","):
        for number in range(1 if size == "all" else subsets):
            folder = out / f"{size}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            values = folder / "epochs.json"
            if not values.is_file():
                values.write_text(json.dumps(measure_subset(experiment, size, number, epochs, folder), indent=1))
            measured.setdefault(size, []).append(json.loads(values.read_text()))
        Console(width=140).print(table(size, measured[size]))
    everything = [run for runs in measured.values() for run in runs]
    Console(width=140).print(table("all sizes", everything))


def table(size: str, runs: list[list[Any]]) -> Table:
    """The means over the subsets of the test metrics at the epochs that each validation metric chooses."""
    names = list(runs[0][0]["hybrid"])
    printed = Table("chosen by", "epochs", *names, title=f"{size}: {len(runs)} trainings, hybrid (embeddings alone)")
    for metric in VALIDATION_METRICS:
        epochs = [int(np.argmax([epoch["validation"][metric] for epoch in run])) for run in runs]
        chosen = [run[epoch] for run, epoch in zip(runs, epochs, strict=True)]
        means = {system: [np.mean([each[system][name] for each in chosen]) for name in names] for system in SYSTEMS}
        printed_means = zip(means["hybrid"], means["embeddings"], strict=True)
        cells = [f"{hybrid:.4f} ({alone:.4f})" for hybrid, alone in printed_means]
        printed.add_row(metric, " ".join(map(str, epochs)), *cells)
    best = [np.mean([max(epoch["hybrid"][name] for epoch in run) for run in runs]) for name in names]
    printed.add_row("the test metric itself", "", *(f"{value:.4f}" for value in best))
    return printed


if __name__ == "__main__":
    cli.run(main)
