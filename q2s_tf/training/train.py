"""Training as a whole: tokenizer, stage 1, stage 2, into a run directory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from q2s_tf.cli import console, track
from q2s_tf.config import Config, save_config
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write
from q2s_tf.models import (
    OWN_TOKENIZER,
    STAGE_WEIGHTS,
    Towers,
    build_towers,
    load_weights,
    read_ids,
    read_run_config,
    read_tokenizers,
)
from q2s_tf.tables import Table, open_documents, open_judgements, open_positives
from q2s_tf.text import Tokenizer, normalise, train_tokenizer
from q2s_tf.training.build_examples import build_examples
from q2s_tf.training.examples import Examples
from q2s_tf.training.imitation import imitate
from q2s_tf.training.learner import Learner
from q2s_tf.training.metrics_log import MetricsLog
from q2s_tf.training.pretrained import fill_encoders, filled, load_pretrained
from q2s_tf.training.stage import train_stage
from q2s_tf.training.teacher import read_teacher
from q2s_tf.training.validation import Validation
from q2s_tf.training.workers import Workers


def train(
    config: Config,
    documents: Path,
    positives: Path,
    validation: Path,
    run: Path,
    tokenizer: Path | None = None,
    resume: bool = False,
) -> Towers:
    """Trains the towers and leaves a run directory that `q2s_tf.load` reads.

    With `TF_CONFIG` set this process is one of several workers, see `Workers`; each is started with the same arguments.

    Args:
        config: what to train; the run keeps it with the values of its categorical channels filled in.
        documents: the catalogue.
        positives: pairs of a query and the document that answered it.
        validation: judgements, or later positives; the best epoch is the one with the highest ROC AUC on them.
        run: the run directory to make.
        tokenizer: a SentencePiece model made by an earlier run; one is trained when None.
        resume: go on with a run that was cut short, after its last finished epoch.

    Returns:
        The trained towers.

    Raises:
        InputError: a table that breaks its contract, a run directory that is there already (without `resume`) or is not
            (with it), a config other than that of the run to resume (only how stage 1 ends may change), a stage 1 that
            ended before it converged (see `stage2.unconverged`; nothing is lost), fewer positives than
            `stage2.negative_rank` needs.
    """
    catalogue = open_documents(documents, config.tower_inputs("document"), config.vector_inputs())
    pairs, judgements = open_positives(positives), open_judgements(validation)
    document_ids = read_ids(catalogue)
    workers = Workers()
    judged = Validation(config, catalogue, document_ids, judgements)
    if workers.chief and not resume:
        _refuse_existing(run)
    with workers.together():
        with _nothing_left_of(run, unless=resume or not workers.chief):
            if workers.chief:
                _prepare(config, catalogue, pairs, run, tokenizer, resume)
            workers.wait()
            with workers.strategy.scope():
                config = read_run_config(run)
                towers = build_towers(config, *read_tokenizers(run, config))
            begun = (run / "checkpoints/stage1/checkpoint").exists()
            if begun:  # a stage's own will follow; the frozen ones are these
                load_weights(towers, run / "checkpoints" / STAGE_WEIGHTS[1])
            else:
                load_pretrained(towers)
            teacher = read_teacher(config.distillation, config.dimension)
            examples = build_examples(run / EXAMPLES.format(workers.index), towers, catalogue, pairs, teacher)
            _check_negatives(config, examples)
        console.print(
            f"{len(examples):,} positives, {len(document_ids):,} documents, {towers.count_params():,} weights"
        )
        learner = Learner(towers, workers, examples.labels.count if examples.labels else 0)
        if config.distillation.epochs and teacher and not begun:
            imitate(learner, examples)
        _train_stages(learner, examples, judged, run)
    return towers


EXAMPLES = "examples-{}"
"""Folder of a worker's prepared inputs, in the run directory while it trains."""


@contextmanager
def _nothing_left_of(run: Path, unless: bool) -> Iterator[None]:
    """A run directory that cannot be begun is not left behind; an empty one that was there stays."""
    existed = run.exists()
    try:
        yield
    except Exception:
        if not unless:
            shutil.rmtree(run, ignore_errors=True)
            if existed:
                run.mkdir(exist_ok=True)
        raise


def _prepare(config: Config, catalogue: Table, pairs: Table, run: Path, tokenizer: Path | None, resume: bool) -> None:
    """Makes the run directory with its config and its tokenizer, or looks whether it can be gone on with."""
    tokenizers: dict[str, bytes] = {}
    if resume:
        config = _resumed_config(config, run)
    else:
        config, tokenizers = fill_encoders(fill_categories(config, catalogue, pairs))
    run.mkdir(parents=True, exist_ok=True)
    for name, model in tokenizers.items():
        with atomic_write(run / OWN_TOKENIZER.format(name)) as aside:
            aside.write_bytes(model)
    save_config(config, run / "config.toml")  # before all that takes time: a run killed from here on can be resumed
    _tokenizer(config, catalogue, pairs, run, tokenizer)


def _check_negatives(config: Config, examples: Examples) -> None:
    stage2, rows = config.stage2, examples.rows_per_batch(config.stage2.batch_size)
    if stage2.max_epochs and stage2.negative_rank >= rows:
        raise InputError(
            f"stage2.negative_rank is {stage2.negative_rank}, but a batch of the {len(examples):,} positives has only "
            f"{rows - 1} other documents, so that no query would have a negative: lower it"
        )


def _train_stages(learner: Learner, examples: Examples, judged: Validation, run: Path) -> None:
    config = learner.config
    log = MetricsLog(run if learner.workers.chief else run / EXAMPLES.format(learner.workers.index))
    for stage in (1, 2) if config.stage2.max_epochs else (1,):
        outcome = train_stage(stage, run, learner, examples, judged, log)
        console.print(f"stage {stage} done: validation ROC AUC {outcome.best:.4f}, {run / STAGE_WEIGHTS[stage]}")
        if stage == 1 and config.stage2.max_epochs and not (outcome.converged or config.stage2.unconverged):
            raise InputError(
                f"run {run}: stage 2 starts from a stage 1 that has converged, and its validation ROC AUC was still "
                f"rising after stage1.max_epochs = {config.stage1.max_epochs}: --resume with --set "
                "stage1.max_epochs=<more>, or with --set stage2.unconverged=true to go on as it is"
            )
    log.close()
    shutil.rmtree(run / EXAMPLES.format(learner.workers.index))


def fill_categories(config: Config, documents: Table, positives: Table) -> Config:
    """The config with the values of its categorical channels: the most frequent ones of their column, normalised."""
    channels = dict(config.channels)
    for name, channel in config.channels.items():
        if channel.kind != "categorical" or channel.values:
            continue
        table = documents if channel.tower == "document" else positives
        counts = pa.chunked_array(
            [_normalised(batch.column(channel.input)) for batch in table.batches()]
        ).value_counts()
        ranked = sorted(
            ((entry["counts"], entry["values"]) for entry in counts.to_pylist() if entry["values"]), reverse=True
        )
        values = tuple(sorted(value for _, value in ranked[: channel.max_values]))
        channels[name] = channel.model_copy(update={"values": values})
    return config.model_copy(update={"channels": channels})


def _normalised(column: pa.Array) -> pa.Array:
    return pa.array(normalise(tf.constant(pc.fill_null(column, "").to_pylist())).numpy(), pa.binary()).cast(pa.string())


def _tokenizer(config: Config, documents: Table, positives: Table, run: Path, given: Path | None) -> Tokenizer:
    """The run's tokenizer: its own when it has one, else the given one, else a new one; left in the run directory."""
    path = run / "tokenizer.model"
    if given is not None:
        Tokenizer.read(given)
    if not path.is_file():
        settings = config.tokenizer
        console.print("making the tokenizer" if given is None else f"taking the tokenizer {given}")
        model = (
            given.read_bytes()
            if given
            else train_tokenizer(
                _texts(config, documents, positives),
                settings.vocabulary_size,
                settings.character_coverage,
                settings.max_sentences,
            )
        )
        with atomic_write(path) as aside:
            aside.write_bytes(model)
    return Tokenizer.read(path)


def _texts(config: Config, documents: Table, positives: Table) -> Iterator[str]:
    """Every text that a text channel will read, normalised."""
    for tower, table in (("query", positives), ("document", documents)):
        inputs = {c.input for c in config.tower_channels(tower).values() if c.kind in ("text", "trigrams")}
        for batch in track(table.batches(), f"reading {tower} texts", -(-table.num_rows() // 8_192)):
            for name in sorted(inputs):
                yield from (text for text in _normalised(batch.column(name)).to_pylist() if text)


def _refuse_existing(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(
            f"run {run}: is there already and is not empty: give another --out, or --resume to go on with it"
        )


def _resumed_config(config: Config, run: Path) -> Config:
    """The config of the run to go on with, which must be what `config` asks for."""
    kept = read_run_config(run)
    asked = config.model_copy(update={"channels": {**config.channels}})
    for name, channel in kept.channels.items():
        if (
            channel.kind == "categorical"
            and name in asked.channels
            and not getattr(asked.channels[name], "values", True)
        ):
            asked.channels[name] = asked.channels[name].model_copy(update={"values": channel.values})
    encoders = dict(asked.encoders)
    for name, encoder in asked.encoders.items():
        if encoder.preset and name in kept.encoders:
            encoders[name] = filled(encoder, kept.encoders[name])
    asked = asked.model_copy(update={"encoders": encoders})
    open_end = _same_end(kept, asked)
    if open_end != kept:
        changed = [key for key in type(kept).model_fields if getattr(open_end, key) != getattr(kept, key)]
        raise InputError(
            f"run {run}: was trained with another config (differs in {', '.join(changed)}): train into a new --out"
        )
    if asked != kept and (run / "checkpoints" / "stage2").exists():
        raise InputError(f"run {run}: its stage 2 has begun, so stage 1 cannot go on: train into a new --out")
    return asked


def _same_end(kept: Config, asked: Config) -> Config:
    """What is asked for, but with the end of stage 1 as it was: the one thing that may change on the way."""
    stage1 = asked.stage1.model_copy(update={"max_epochs": kept.stage1.max_epochs})
    stage2 = asked.stage2.model_copy(update={"unconverged": kept.stage2.unconverged})
    return asked.model_copy(update={"stage1": stage1, "stage2": stage2})
