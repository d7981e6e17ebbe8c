"""A fast run: the document tower of a run, and a small query tower that is distilled from the one of that run."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import q2s_tf
from q2s_tf.cli import console
from q2s_tf.config import Blending, Config
from q2s_tf.config_files import check_config, read_config, save_config
from q2s_tf.errors import InputError
from q2s_tf.examples.prepare import build_examples
from q2s_tf.examples.table_scan import TableScan
from q2s_tf.models import (
    ENCODER_TOKENIZER,
    RUN_TOKENIZER,
    STAGE_WEIGHTS,
    build_towers,
    load,
    load_weights,
    read_tokenizers,
    save_weights,
)
from q2s_tf.tables import open_documents, open_judgements, open_positives
from q2s_tf.text import train_tokenizer
from q2s_tf.training.callbacks import EpochMetrics, EpochRecord, History
from q2s_tf.training.distillation import distil, tower_teacher
from q2s_tf.training.new_run import refuse_existing, run_directory
from q2s_tf.training.validation import Validation, read_validation
from q2s_tf.training.workers import Workers

STUDENT = q2s_tf.CONFIGS / "distil.toml"
"""Config of the student: its query channels and their encoders, `tokenizer`, `pseudo_queries` and `distillation`."""
EXAMPLES, METRICS = "examples", "metrics.jsonl"


def distil_run(
    run: Path,
    documents: Path,
    positives: Path | None,
    validation: Path,
    out: Path,
    overrides: Sequence[str] = (),
) -> None:
    """Distils the query tower of a run into a small one and writes a run directory with both of its towers.

    The new query tower is trained to the query embeddings of the run, on the distinct queries of the positives and on
    pseudo-queries. The best epoch has the highest `evaluation.validation_metric` with the document embeddings of the
    run, which do not change.

    Args:
        run: the run directory of the teacher.
        documents: the catalogue.
        positives: pairs whose queries are learned; None for pseudo-queries alone.
        validation: judgements, or later positives.
        out: the run directory to create.
        overrides: `key=value` for keys of the config of the student, see `student_config`.

    Raises:
        InputError: not a trained run, or one whose query tower reads no text through an encoder; a table that breaks
            its contract; no query; an `out` that exists.
    """
    workers, source = Workers(), load(run)
    refuse_existing(out)
    config = student_config(source.config, run, overrides)
    if positives is None and not config.pseudo_queries.per_document:
        raise InputError("distil: there is no query to learn: give --positives, or set pseudo_queries.per_document")
    catalogue = open_documents(documents, config.tower_inputs("document"), config.vector_inputs())
    pairs, judgements = open_positives(positives) if positives else None, open_judgements(validation)
    with run_directory(out, chief=True, resume=False):
        scan, folder = TableScan(config, "document", catalogue), out / EXAMPLES
        scans = [scan, TableScan(config, "query", pairs)] if pairs else [scan]
        _write_tokenizers(config, scans, run, out)
        towers = build_towers(config, read_tokenizers(out, config))
        # An encoder that the query tower shared may have more positions than the documents need.
        for weight, given in zip(towers.document.weights, source.document.weights, strict=True):
            weight.assign(given.numpy()[tuple(map(slice, weight.shape))])
        towers.document.trainable = False  # its encoders are then computed once for each document
        judged, relevant = read_validation(judgements, scan.document_ids, config)
        teacher = tower_teacher(source.query, config.dimension)
        examples = build_examples(folder, towers, catalogue, pairs, teacher)
        validate = Validation(towers, judged, relevant, examples.documents, folder / "validation")
        history: History = []
        best = folder / STAGE_WEIGHTS[1]
        dataset = examples.distillation_dataset(config.distillation.batch_size, config.seed)
        record = EpochRecord(towers.query, history, 1, len(dataset), folder / METRICS, best)
        record.record(0, validate())
        distil(towers.query, dataset, workers, [EpochMetrics(validate), record])
        load_weights(towers.query, best)
        save_weights(towers, out / STAGE_WEIGHTS[1])
        os.replace(folder / METRICS, out / METRICS)
        save_config(config, out / "config.toml")
        shutil.rmtree(folder)


def student_config(teacher: Config, run: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run with the student of `STUDENT`. Categorical query channels are kept.

    Args:
        teacher: the config of the run.
        run: its directory.
        overrides: `key=value` for the new config.

    Raises:
        InputError: a run whose query tower has no text encoder, or whose names are those of the student; overrides that
            break a rule, or that change more than the student.
    """
    if not teacher.text_channels("query"):
        raise InputError(
            f"run {run}: its query tower has no text encoder, so that it is fast already: give another --run"
        )
    student = read_config(STUDENT)
    kept = {
        name: channel
        for name, channel in teacher.channels.items()
        if channel.tower == "document" or channel.kind == "categorical"
    }
    channels, encoders = student.tower_channels("query"), student.tower_encoders("query")
    kept_encoders = teacher.tower_encoders("document")
    if taken := sorted(channels.keys() & kept.keys() | encoders.keys() & kept_encoders.keys()):
        raise InputError(f"run {run}: the student has channels or encoders of the same names: {', '.join(taken)}")
    merged = teacher.model_copy(
        update={
            "channels": channels | kept,
            "encoders": encoders | kept_encoders,
            "tokenizer": student.tokenizer,
            "pseudo_queries": student.pseudo_queries,
            "distillation": student.distillation.model_copy(update={"teacher": str(run)}),
            "start": None,
            "head": None,
            "blending": Blending(),
        }
    )
    config = check_config(merged.model_dump(mode="json", exclude_none=True), f"student of {run}", overrides)
    if _fixed_part(config) != _fixed_part(merged):
        raise InputError("--set: the teacher, the dimension and the document tower are those of --run: set other keys")
    if not config.distillation.epochs:
        raise InputError("--set: distillation.epochs must be at least 1")
    return config


def _fixed_part(config: Config) -> tuple[object, ...]:
    encoders = config.tower_encoders("document")
    return config.distillation.teacher, config.dimension, config.tower_channels("document"), encoders


def _write_tokenizers(config: Config, scans: list[TableScan], run: Path, out: Path) -> None:
    """Writes the tokenizers of a student's run, after reading the tables.

    Those of the document tower are copied. If it reads the one that q2s_tf trained, the student does too.
    """
    encoders = config.tower_encoders("document")
    files = {ENCODER_TOKENIZER.format(name) if each.pretrained else RUN_TOKENIZER for name, each in encoders.items()}
    for name in files:
        shutil.copyfile(run / name, out / name)
    if RUN_TOKENIZER in files:
        for scan in scans:
            scan.read()
    else:
        console.print("training the tokenizer")
        texts = (text for scan in reversed(scans) for text in scan.texts())
        (out / RUN_TOKENIZER).write_bytes(train_tokenizer(texts, **config.tokenizer.model_dump()))
