"""Evaluation of a run on judgements, alone and with BM25 added, compared with systems that need no training."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from q2s_tf.cli import console, track
from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.evaluation.advice import advise
from q2s_tf.evaluation.collection import (
    DEPTH,
    FUSED,
    HYBRID,
    INDEX,
    MODEL,
    SYSTEMS,
    Collection,
    Grades,
    add_lexical,
    choose_grades,
    embed_collection,
    embed_titles,
    rank_documents,
    read_judged,
    score_documents,
)
from q2s_tf.evaluation.exported_index import MilvusAddress, find_published, find_retriever
from q2s_tf.evaluation.metrics import Run, as_run, batch_hits, mean_by_query, overlap_at_k
from q2s_tf.evaluation.rankers import Bm25, LexicalPart, normalised
from q2s_tf.evaluation.results import RunEvaluation, check_out, describe, replace_files, write_evaluation
from q2s_tf.evaluation.slices import Slicing, make_slicings
from q2s_tf.evaluation.system_metrics import measure_systems
from q2s_tf.models import PACKAGED, Towers, load, preset_towers
from q2s_tf.serving.lexical_weight import DEFAULT_WEIGHT, default_columns
from q2s_tf.tables import open_documents, open_positives

SMALL = 30
"""A slice with fewer queries is marked as small: its interval is too wide for a conclusion."""


def evaluate(
    run: Path,
    documents: Path,
    judgements: Path,
    out: Path | None = None,
    relevant_at: float | None = None,
    recall_relevant_at: float | None = None,
    stage: int | None = None,
    later: Path | None = None,
    positives: Path | None = None,
    models: Path | None = None,
    encoder: str | None = None,
    milvus: MilvusAddress | None = None,
) -> RunEvaluation:
    """Evaluates a run, BM25 and an unmodified encoder, and both of these with BM25 added.

    The ranking of an index is measured too: of the retriever in `models`, or of a catalogue in `milvus`. `encoder` is
    the preset of the unmodified encoder, or "none"; by default that of the config of the run, or all-MiniLM-L6-v2.
    Nothing is written if `out` is None. See `q2s_tf.evaluate`.

    Raises:
        InputError: not a trained run, a table that breaks its contract, judgements of another catalogue, no relevant
            pair, no export, a preset that cannot be read, a folder that cannot be written.
    """
    open_documents(documents)
    trained_on = open_positives(positives) if positives else None
    towers = load(run, stage)
    if out:
        check_out(out)
    if models and milvus:
        raise InputError("models and uri: one index is measured; leave one of them out")
    exported = find_retriever(models, towers) if models else None
    exported = find_published(milvus, towers) if milvus else exported
    seed, grades = towers.config.seed, choose_grades(towers.config, relevant_at, recall_relevant_at)
    need_grades = (relevant_at, recall_relevant_at) != (None, None)
    judged, later_positives = read_judged(documents, judgements, later, seed, grades, need_grades)
    preset, unmodified = load_encoder(encoder, towers.config)
    collection = embed_collection(towers, documents, judged, later_positives)
    table, columns, weight = collection.table, default_columns(collection.table), DEFAULT_WEIGHT
    if exported:
        weight = exported.manifest["lexical_weight"]  # 0 without a lexical index
        columns = exported.manifest["lexical"]["columns"] if exported.manifest["lexical"] else columns
    weights = {HYBRID: weight, FUSED: weight or DEFAULT_WEIGHT}
    cosines = score_documents(collection, embed_titles(unmodified, collection) if unmodified else None)
    lexical = Bm25(table), LexicalPart(table, columns)
    scores, retrieved = rank_documents(judged, add_lexical(cosines, judged.queries["query"], *lexical, weights))
    compared = [(a, b) for b, a in combinations(SYSTEMS, 2) if {a, b} <= set(retrieved)]
    if exported:
        ids = collection.documents["document_id"].combine_chunks()
        retrieved[INDEX] = exported.search(collection.query_embeddings, ids, DEPTH)
        compared.append((INDEX, MODEL))
    with console.status("measuring"):
        runs = {system: as_run(retrieved[system]) for system in SYSTEMS if system in retrieved}
        metrics = measure_systems(judged, grades, collection.later, scores, runs)
        metrics.per_query[MODEL] |= batch_recall(collection, metrics.relevant)
        if INDEX in retrieved:
            overlap = {k: overlap_at_k(retrieved[INDEX], retrieved[MODEL], k) for k in (10, DEPTH)}
            metrics.per_query[INDEX] |= {f"index_recall@{k}": values for k, values in overlap.items()}
        figures, significance = metrics.figures(seed), metrics.differences(compared, seed)
        slicings = make_slicings(collection, trained_on.read() if trained_on else None)
    results = {
        "run": run.resolve().name,
        "judgements": judgements.name,
        "later": later.name if later else None,
        "lexical_weight": weight,
        "encoder": {"preset": preset, "lexical_weight": weights[FUSED]} if unmodified else None,
        "index": {key: exported.manifest[key] for key in ("version", "index")} if exported else None,
        **describe(collection, grades),
        "systems": figures,
        "significance": significance,
        "slices": _measure_slices(slicings, collection, grades, scores, runs),
    }
    results["advice"] = advise(results)
    evaluation = RunEvaluation(
        **vars(collection),
        run=run,
        grades=grades,
        metrics=metrics,
        retrieved=retrieved,
        query_slices={cut.name: cut.query for cut in slicings if cut.query is not None and cut.document is None},
        results=results,
    )
    if out:
        with replace_files(out) as folder:
            write_evaluation(evaluation, folder)
    return evaluation


def load_encoder(name: str | None, config: Config) -> tuple[str, Towers | None]:
    """The preset of the unmodified encoder and its towers.

    Args:
        name: a preset, "none", or None for the first preset of the config, or else all-MiniLM-L6-v2. Such a default
            that cannot be read is left out, because a run does not need its preset any more.
        config: of the run.

    Raises:
        InputError: a given preset that cannot be read.
    """
    if name == "none":
        return name, None
    preset = name or next((encoder.preset for encoder in config.encoders.values() if encoder.preset), PACKAGED)
    try:
        with console.status("reading the unmodified encoder"):
            return preset, preset_towers(preset)
    except InputError as error:
        if name:
            raise
        hint = "--encoder names another encoder; --encoder none leaves it out"
        console.print(f"without the unmodified encoder: {error} ({hint})", markup=False)
        return preset, None


def batch_recall(collection: Collection, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """Batch recall as in training: of random batches of its size, without the other positives of a query.

    As in training, queries that are equal after normalisation share their positives, whatever their countries.

    Args:
        collection: the embedded test collection.
        relevant: which judged pairs are relevant, bool `[J]`.

    Returns:
        `batch_recall@1` and `batch_recall@10` of each query, float `[Q]`.
    """
    config, num_queries = collection.towers.config, len(collection.query_embeddings)
    query, document = collection.judged.query[relevant], collection.judged.document[relevant]
    texts = normalised([text or "" for text in collection.judged.queries["query"]])
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    group = np.array([numbers[text] for text in texts])[query] * len(collection.documents)
    known = group + document
    order = np.random.default_rng(config.seed).permutation(len(query))
    hits = {k: np.zeros(len(query), bool) for k in (1, 10)}
    for start in range(0, len(order), config.stage1.batch_size):
        rows = order[start : start + config.stage1.batch_size]
        mask = ~np.isin(group[rows, None] + document[rows], known)
        np.fill_diagonal(mask, True)
        embeddings = collection.query_embeddings[query[rows]], collection.document_embeddings[document[rows]]
        for k, values in hits.items():
            values[rows] = batch_hits(*embeddings, mask, k).numpy()
    return {f"batch_recall@{k}": mean_by_query(values, query, num_queries) for k, values in hits.items()}


def _measure_slices(
    slicings: list[Slicing], collection: Collection, grades: Grades, scores: dict[str, np.ndarray], runs: dict[str, Run]
) -> list[dict[str, Any]]:
    """The entry `slices` of `metrics.json`; a slicing with a single slice is left out."""
    entries, judged, later = [], collection.judged, collection.later
    for slicing in track(slicings, "measuring slices"):
        values = []
        for label in slicing.names(judged):
            pairs = slicing.labels(judged) == label
            chosen = later and later.select(slicing.labels(later) == label)
            of_pairs = {system: of_system[pairs] for system, of_system in scores.items()}
            part = measure_systems(judged.select(pairs), grades, chosen, of_pairs, runs)
            queries = len(np.unique(part.query))
            sizes = {"queries": queries, "pairs": len(part.query), "relevant_pairs": int(part.relevant.sum())}
            figures = part.figures(collection.towers.config.seed)
            values.append({"value": label, **sizes, "small": queries < SMALL, "systems": figures})
        if len(values) > 1:
            entries.append({"name": slicing.name, "about": slicing.about, "values": values})
    return entries
