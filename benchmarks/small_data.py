#!/usr/bin/env python
"""Retrieval by the number of training queries: a run and its hybrid beside BM25, its encoder, and fusions of both.

For each size, random subsets of the training queries are drawn. A part of the validation queries, an eighth of the size
and at least 20, chooses epochs and fusion weights. The systems on the test queries, over the whole catalogue:

- `BM25` (bm25s, English stems);
- `zero-shot`: the pretrained encoder of the config, unchanged, without the other channels of the config;
- `fine-tuned`: the same encoder after one epoch with in-batch negatives on the same pairs, or unchanged if that is
  better on the validation queries;
- `zero-shot + BM25`, `fine-tuned + BM25`: cos + w · BM25 / max BM25, with w chosen on the validation queries as export
  chooses it;
- `embeddings`, `hybrid`: the run of the config, and what its retriever returns, with the weight that export chooses.

The values of a query are averaged over the subsets, and differences are tested by a bootstrap over queries.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import typer
from draw_part import draw_queries
from rich.console import Console
from rich.table import Table as RichTable

import q2s_tf
from q2s_tf import cli, find_config
from q2s_tf.config import Config
from q2s_tf.config_files import read_config
from q2s_tf.evaluation.collection import rank_documents
from q2s_tf.evaluation.judgements import Judgements, read_judgements
from q2s_tf.evaluation.metrics import as_run
from q2s_tf.evaluation.rankers import Bm25, LexicalPart, cosine_rows, top_k
from q2s_tf.evaluation.results import write_json
from q2s_tf.evaluation.system_metrics import SystemMetrics, measure_systems
from q2s_tf.index.postings import build_postings
from q2s_tf.index.word_counts import count_words
from q2s_tf.models import Towers, embed_catalogue, encode, read_ids
from q2s_tf.serving.document_rows import to_bytes
from q2s_tf.serving.lexical_weight import (
    PRETRAINED_ERRORS,
    WEIGHTS,
    choose_weight,
    default_columns,
    nearest_weight,
)
from q2s_tf.tables import Table, open_documents, open_judgements

OURS = "hybrid"
MIN_VALIDATION = 20

PerQuery = dict[str, dict[str, np.ndarray]]
"""By system and metric the value of each test query."""


@dataclass
class Experiment:
    """One data set: the catalogue, its BM25, and the judged test queries.

    Args:
        data: a folder of tools/import_dataset.py.
        config: the config of the runs.
        grades: the lowest relevant grade, and that of recall and MRR.
    """

    data: Path
    config: Config
    grades: tuple[float, float]

    def __post_init__(self) -> None:
        texts = {name: channel for name, channel in self.config.channels.items() if channel.kind == "text"}
        plain = self.config.stage1.model_copy(update={"hard_negatives": False, "max_epochs": 1})
        self.encoder = self.config.model_copy(update={"channels": texts, "stage1": plain})
        self.documents = self.data / "documents.parquet"
        self.table = open_documents(self.documents)
        self.lexical = Bm25(self.table)
        self.ids = read_ids(self.table)
        self.judged = read_judgements(open_judgements(self.data / "judgements_dev.parquet"), self.ids, 0)
        self.columns = default_columns(self.table)
        self.postings = build_postings(count_words(self.table.batches(), self.columns), self.columns)

    def train(self, config: Config, run: Path, pairs: dict[str, Any]) -> Towers:
        """The run in a folder, trained unless it is complete."""
        if (run / "stage1.weights.h5").is_file():
            return q2s_tf.load(run)
        shutil.rmtree(run, ignore_errors=True)  # of an interrupted training
        return q2s_tf.train(config, documents=self.documents, out=run, **pairs)

    def draw(self, name: str, size: str, number: int, out: Path) -> Path:
        """The rows of `size` random queries of a table, in a file."""
        rows = pq.read_table(self.data / name)
        if size != "all":
            rows = draw_queries(rows, int(size), np.random.default_rng(number))
        pq.write_table(rows, out / name)
        return out / name

    def draw_validation(self, size: str, number: int, out: Path) -> Path:
        """The validation judgements that go with `size` training queries, in a file."""
        enough = size if size == "all" else str(max(MIN_VALIDATION, int(size) // 8))
        return self.draw("judgements_validation.parquet", enough, number, out)

    def measure(self, out: Path, size: str, number: int) -> PerQuery:
        """Trains and measures on one subset."""
        validation = self.draw_validation(size, number, out)
        towers = {"zero-shot": self.train(self.encoder, out.parent / "zero-shot", {})}
        towers |= {"fine-tuned": towers["zero-shot"], "embeddings": towers["zero-shot"]}
        if size != "0":
            pairs = {"positives": self.draw("positives.parquet", size, number, out), "validation": validation}
            towers["fine-tuned"] = self.train(self.encoder, out / "fine-tuned", pairs)
            towers["embeddings"] = self.train(self.config, out / "run", pairs)
        scores: dict[str, np.ndarray] = {}
        ranked = {}
        for system, rows in self.systems(towers, open_judgements(validation)):
            scored, retrieved = rank_documents(self.judged, ({system: row} for row in rows), system)
            scores |= scored
            ranked[system] = as_run(retrieved[system])
        return measure_systems(self.judged, self.grades, None, scores, ranked).per_query

    def systems(self, towers: dict[str, Towers], validation: Table) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Each system, and for each test query its score of every document."""
        judged = read_judgements(validation, self.ids, 0)
        judged = judged.select(judged.relevant(self.grades[1]))
        yield "BM25", self.lexical.rows(self.judged.queries["query"])
        for name, each in towers.items():
            vectors = embed_catalogue(each.document, open_documents(self.documents))[1]
            yield name, self.cosines(each, vectors, self.judged)
            if name == "embeddings":
                weight, _ = choose_weight(each, validation, to_bytes(self.ids), vectors, self.postings)
                part = LexicalPart(self.table, self.columns).rows(self.judged.queries["query"])
                cosines = self.cosines(each, vectors, self.judged)
                yield OURS, (cosine + weight * share for cosine, share in zip(cosines, part, strict=True))
            else:
                recalls = [self.recalls(self.fused(each, vectors, judged, weight), judged) for weight in WEIGHTS]
                weight = nearest_weight(np.stack(recalls, axis=1), PRETRAINED_ERRORS)
                yield f"{name} + BM25", self.fused(each, vectors, self.judged, weight)

    def cosines(self, towers: Towers, vectors: np.ndarray, judged: Judgements) -> Iterator[np.ndarray]:
        """For each query its cosine with every document."""
        return cosine_rows(encode(towers.query, judged.queries)["embedding"], vectors)

    def fused(self, towers: Towers, vectors: np.ndarray, judged: Judgements, weight: float) -> Iterator[np.ndarray]:
        """For each query cos + weight · BM25 / max BM25 of every document."""
        words = self.lexical.rows(judged.queries["query"])
        for cosines, row in zip(self.cosines(towers, vectors, judged), words, strict=True):
            yield cosines + weight * row / max(row.max(), 1e-9)

    def recalls(self, rows: Iterator[np.ndarray], judged: Judgements) -> np.ndarray:
        """Recall@10 of each query with a relevant document, by its scores of every document."""
        best = [top_k(row, 10) for row in rows]
        pairs = zip(judged.by_query(), best, strict=True)
        return np.array([np.isin(judged.document[pair], ten).mean() for pair, ten in pairs if len(pair)])


def main(
    data: Path = typer.Option(..., help="Folder of tools/import_dataset.py."),
    out: Path = typer.Option(..., help="Folder for the runs and small_data.json; finished subsets are kept."),
    config: str = typer.Option("own_data", help="The config of the runs."),
    sizes: str = typer.Option("0,50,200,1000,all", help="Numbers of training queries."),
    subsets: int = typer.Option(3, help="Subsets of each size; 0 and all have one."),
    relevant_at: float = typer.Option(2.33, help="Grade of a relevant document."),
    recall_relevant_at: float = typer.Option(2.67, help="The same for recall and MRR."),
    set_: list[str] = typer.Option([], "--set", help="Overrides a key of the config. May be repeated."),
) -> None:
    """Measure every size, and test the hybrid against each of the other systems.

    Example: benchmarks/small_data.py --data runs/home_depot_data --out runs/small_data
    """
    grades = [f"evaluation.relevant_at={relevant_at}", f"evaluation.recall_relevant_at={recall_relevant_at}"]
    settings = read_config(find_config(config), [*grades, *set_])
    experiment = Experiment(data, settings, (relevant_at, recall_relevant_at))
    results: dict[str, Any] = {}
    for size in sizes.split(","):
        measured = []
        for number in range(subsets if size not in ("0", "all") else 1):
            folder = out / f"{size}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            values = folder / "per_query.json"
            if not values.is_file():
                per_query = experiment.measure(folder, size, number)
                lists = {s: {m: v.tolist() for m, v in each.items()} for s, each in per_query.items()}
                values.write_text(json.dumps(lists))  # NaN where a query has no value
            measured.append(json.loads(values.read_text()))
        results[size] = summarise(measured, experiment.judged)
        write_json(results, out / "small_data.json")
        show(size, results[size])


def summarise(measured: list[dict[str, dict[str, list[float]]]], judged: Judgements) -> dict[str, Any]:
    """The means of the subsets by system and metric, and the tests of the hybrid against each other system."""
    per_query = {
        system: {
            metric: np.mean([np.array(each[system][metric], float) for each in measured], axis=0) for metric in metrics
        }
        for system, metrics in measured[0].items()
    }
    metrics = SystemMetrics(judged.query, np.ones(len(judged.query), bool), {}, per_query)
    tests = metrics.differences([(OURS, system) for system in per_query if system != OURS], seed=0)
    return {"subsets": len(measured), "systems": {name: metrics.values(name) for name in per_query}, "tests": tests}


def show(size: str, results: dict[str, Any]) -> None:
    """Prints a table; a difference to the hybrid that is significant (Holm, 5 %) has a mark."""
    names = list(results["systems"][OURS])
    marks = {
        (test["b"], test["metric"]): "−+"[test["difference"] < 0] for test in results["tests"] if test["p_holm"] < 0.05
    }
    table = RichTable(f"{size} queries, {results['subsets']} subsets", *names, title="− below the hybrid, + above it")
    for system, values in results["systems"].items():
        table.add_row(system, *(f"{values[name]:.4f} {marks.get((system, name), ' ')}" for name in names))
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
