"""Training as a whole: tokenizer, stage 1 and stage 2, into a run directory."""

import shutil
from pathlib import Path
from typing import NamedTuple

import keras

from q2s_tf.cli import console
from q2s_tf.config import Config
from q2s_tf.config_files import save_config
from q2s_tf.errors import InputError
from q2s_tf.examples.batches import Examples
from q2s_tf.examples.prepare import build_examples
from q2s_tf.examples.table_scan import TableScan
from q2s_tf.files import atomic_write
from q2s_tf.models import (
    ENCODER_TOKENIZER,
    RUN_TOKENIZER,
    STAGE_WEIGHTS,
    Towers,
    build_towers,
    fill_encoders,
    fill_from_start,
    fill_open_values,
    load_pretrained,
    load_start,
    load_weights,
    mask_untrained_channels,
    read_run_config,
    read_tokenizers,
    save_weights,
)
from q2s_tf.tables import open_documents, open_judgements, open_positives
from q2s_tf.text import SentencePiece, train_tokenizer
from q2s_tf.training.callbacks import (
    EpochBackups,
    EpochMetrics,
    EpochNumber,
    EpochRecord,
    ResumableEarlyStopping,
    StepProgress,
    epochs_since_best,
    read_history,
    validation_values,
)
from q2s_tf.training.distillation import distil, read_teacher
from q2s_tf.training.hard_negatives import HardNegatives
from q2s_tf.training.new_run import refuse_existing, run_directory
from q2s_tf.training.retrieval_model import RetrievalModel, classification_head, compile_stage
from q2s_tf.training.validation import Validation, read_validation
from q2s_tf.training.workers import Workers

EXAMPLES = "examples"
"""Folder of the prepared examples in the run directory during training."""

CHECKPOINTS = "checkpoints"
NEGATIVES = "hard_negatives"
"""File of the hard negatives of an epoch, among the checkpoints, for the workers that are not the chief."""


def train(
    config: Config,
    documents: Path,
    positives: Path | None,
    validation: Path | None,
    run: Path,
    tokenizer: Path | None = None,
    resume: bool = False,
) -> Towers:
    """Trains the towers and leaves a run directory that `q2s_tf.load` reads.

    Each stage is one `fit` of a `RetrievalModel`. With `TF_CONFIG` set, this process is one of several workers, see
    `q2s_tf.training.workers`; each of them is started with the same arguments.

    Args:
        config: what to train; the run keeps it with the values of its categorical channels filled in.
        documents: the catalogue.
        positives: pairs of a query and a document that answered it. None, also for `validation`: nothing is trained,
            and the run has the pretrained encoders of the config, which both towers must have.
        validation: judgements, or later positives; the epoch with the highest `evaluation.validation_metric` on them is
            the best one.
        run: the run directory to create.
        tokenizer: a SentencePiece model of an earlier run; None for that of the `start` of the config, or to train one.
        resume: continue a run that was interrupted, after its last complete epoch.

    Returns:
        The trained towers.

    Raises:
        InputError: a table that breaks its contract; a run directory that exists (without `resume`) or does not (with
            it), or in which another process trains; a config other than that of the run to resume (only the end of
            stage 1 may change); a stage 1 that ended before it converged (see `stage2.unconverged`); fewer positives
            than `stage2.negative_rank` needs.
    """
    workers = Workers()
    if workers.chief and not resume:
        refuse_existing(run)
    if positives is None or validation is None:
        if resume:
            raise InputError(f"run {run}: --resume needs the --positives and the --validation of the training")
        return _start_from_encoders(config, documents, run, tokenizer, (positives, validation))
    with workers.lost_worker_errors():
        if resume:
            config = _resumed_config(config, run)
        with run_directory(run, workers.chief, resume):
            prepared = prepare_training(config, documents, positives, validation, run, tokenizer, resume, workers)
            towers, config = prepared.towers, prepared.towers.config
            if prepared.undistilled:
                batch_size = config.distillation.batch_size
                distil(towers.query, prepared.examples.distillation_dataset(batch_size, config.seed), workers)
            for stage in (1, 2) if config.stage2.max_epochs else (1,):
                converged = _train_stage(stage, run, prepared, workers)
                if stage == 1 and config.stage2.max_epochs and not (converged or config.stage2.unconverged):
                    raise InputError(
                        f"run {run}: stage 2 needs a stage 1 that has converged, but its validation metric was still "
                        f"rising after stage1.max_epochs = {config.stage1.max_epochs}: --resume with --set "
                        "stage1.max_epochs=<more>, or with --set stage2.unconverged=true to start stage 2 anyway"
                    )
            if workers.chief:  # the others do not read the examples after the last epoch, for whose end all have waited
                shutil.rmtree(run / EXAMPLES)
    return towers


def _start_from_encoders(
    config: Config, documents: Path, run: Path, tokenizer: Path | None, pairs: tuple[Path | None, Path | None]
) -> Towers:
    """A run directory of untrained towers with the pretrained encoders of a config."""
    if any(pairs):
        raise InputError("positives and validation: give both, or neither for the pretrained encoders of the config")
    if config.start:
        raise InputError(f"start {config.start}: is where a training begins: give --positives and --validation")
    if not config.starts_from_encoders():
        raise InputError(
            "positives: only a config with a preset for the texts of both towers can do without them, such as "
            "pretrained: give --positives and --validation, or another --config"
        )
    catalogue = open_documents(documents, config.tower_inputs("document"), config.vector_inputs())
    with run_directory(run, chief=True, resume=False):
        _prepare_run(config, run, [TableScan(config, "document", catalogue)], tokenizer, resume=False)
        config = read_run_config(run)
        towers = build_towers(config, read_tokenizers(run, config))
        load_pretrained(towers)
        mask_untrained_channels(towers, masked=True)
        save_weights(towers, run / STAGE_WEIGHTS[1])
    return towers


class Prepared(NamedTuple):
    """Everything that the stages need."""

    towers: Towers
    """Towers with initial weights, or with those of the best epoch of a stage 1 that has begun."""
    head: keras.layers.Dense | None
    """The classification head of the config."""
    examples: Examples
    """The training examples."""
    validation: Validation
    """The validation metric."""
    undistilled: bool
    """Whether the config has epochs of distillation before stage 1 that have not been trained."""


def prepare_training(
    config: Config,
    documents: Path,
    positives: Path,
    validation: Path,
    run: Path,
    tokenizer: Path | None = None,
    resume: bool = False,
    workers: Workers | None = None,
) -> Prepared:
    """Makes tokenizer, towers, examples and validation, in two passes over the catalogue and over the positives.

    The arguments are those of `train`. The run directory receives the config, the tokenizers and the examples. A model
    can then be trained by hand:

    ```python
    towers, head, examples, validation, _ = prepare_training(config, documents, positives, judgements, run)
    model = RetrievalModel(towers, head)
    compile_stage(model, 1, examples.steps_per_epoch(768))
    model.fit(examples.dataset(768, seed=(17,)), epochs=10, callbacks=[EpochMetrics(validation)])
    ```

    Raises:
        InputError: see `train`.
    """
    workers = workers or Workers()
    catalogue = open_documents(documents, config.tower_inputs("document"), config.vector_inputs())
    pairs, judgements = open_positives(positives), open_judgements(validation)
    run.mkdir(parents=True, exist_ok=True)
    scans = [TableScan(config, "document", catalogue), TableScan(config, "query", pairs)]
    if workers.chief:
        _prepare_run(config, run, scans, tokenizer, resume)
    else:
        scans[0].read()
    judged, relevant = read_validation(judgements, scans[0].document_ids, config)
    workers.barrier()
    config = read_run_config(run)
    with workers.strategy.scope():
        towers = build_towers(config, read_tokenizers(run, config))
    started = bool(read_history(run / "metrics.jsonl", 1))
    if started:
        load_weights(towers, run / CHECKPOINTS / STAGE_WEIGHTS[1])
    elif config.start:
        load_start(towers)
    else:
        load_pretrained(towers)
    folder = run / EXAMPLES
    teacher = read_teacher(config.distillation, config.dimension, config.given_width())
    part = workers.index, workers.count, workers.barrier
    examples = build_examples(folder, towers, catalogue, pairs, teacher, *part)
    _check_negative_rank(config, examples)
    console.print(
        f"training: {examples.num_queries:,} queries, {len(examples):,} positives; validation: "
        f"{len(judged.queries['query']):,} queries, {len(relevant):,} pairs, {relevant.sum():,} of them relevant; "
        f"{examples.num_documents:,} documents, {towers.count_params():,} weights"
    )
    head = None
    if examples.labels:
        with workers.strategy.scope():
            head = classification_head(examples.labels.count, config.dimension)
    measure = Validation(towers, judged, relevant, examples.documents, folder / f"validation-{workers.index}")
    undistilled = bool(config.distillation.epochs and teacher and not started)
    return Prepared(towers, head, examples, measure, undistilled)


def _train_stage(stage: int, run: Path, prepared: Prepared, workers: Workers) -> bool:
    """Trains one stage to `RUN/stageN.weights.h5`, the weights of its best epoch; returns whether it converged.

    Epoch 0, the weights at the beginning of the stage, can be the best epoch. A stage that has ended is not trained
    again.
    """
    towers, head, examples, validation, _ = prepared
    config = towers.config
    settings = config.stage1 if stage == 1 else config.stage2
    steps = examples.steps_per_epoch(settings.batch_size)
    with workers.strategy.scope():
        model = RetrievalModel(towers, head)
        compile_stage(model, stage, steps)
        model.optimizer.build(model.trainable_variables)
    metrics, best = run / "metrics.jsonl", run / CHECKPOINTS / STAGE_WEIGHTS[stage]
    backups = EpochBackups(run / CHECKPOINTS / f"stage{stage}")
    complete = backups.restore(model)
    recorded = read_history(metrics, stage)
    if recorded and recorded[-1]["epoch"] > complete + 1:
        raise InputError(f"run {run}: the last backup of stage {stage} is missing: train into a new --out")
    history = [entry for entry in recorded if entry["epoch"] <= complete]
    record = EpochRecord(towers, history, stage, steps, metrics if workers.chief else None, best)

    def validate() -> dict[str, float]:
        return {validation.name: workers.broadcast(validation.value)}

    if not history:
        record.set_model(model)
        mask_untrained_channels(towers, masked=True)
        record.record(0, validate())
        if workers.chief:
            backups.set_model(model)
            backups.on_epoch_end(-1)
    if complete < settings.max_epochs and epochs_since_best(history) < settings.patience:
        number = EpochNumber()
        rows = steps * examples.rows_per_batch(settings.batch_size)
        callbacks: list[keras.callbacks.Callback] = [
            number,
            StepProgress(f"stage {stage}", settings.max_epochs),
            EpochMetrics(validate, rows),
            ResumableEarlyStopping(history, settings.patience),
            record,
        ]
        mined = None
        if settings.hard_negatives:
            file = run / CHECKPOINTS / NEGATIVES
            embeddings = validation.embed_documents
            mined = HardNegatives(towers, examples, (config.seed, stage), workers, file, embeddings)
            callbacks.append(mined)
        # After the mining, which can use the embeddings of the validation.
        callbacks.append(
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, _: mask_untrained_channels(towers, masked=False) if epoch == 0 else None
            )
        )
        if workers.chief:  # the CSV comes after the backup: an epoch that is repeated has one row
            callbacks += [
                keras.callbacks.TensorBoard(str(run / "tensorboard" / f"stage{stage}"), write_graph=False),
                backups,
                keras.callbacks.CSVLogger(str(run / f"stage{stage}.csv"), append=True),
            ]
        dataset = examples.dataset(
            settings.batch_size, (config.seed, stage), lambda: number.number, mined and mined.rows
        )
        workers.fit(model, dataset, settings.max_epochs, callbacks, complete)
    workers.barrier()  # the best weights are on disk
    load_weights(towers, best)
    if workers.chief:
        save_weights(towers, run / STAGE_WEIGHTS[stage])
    best_value = max(validation_values(history))
    console.print(f"stage {stage} done: validation {validation.metric} {best_value:.4f}, {run / STAGE_WEIGHTS[stage]}")
    return epochs_since_best(history) >= settings.patience


def _prepare_run(config: Config, run: Path, scans: list[TableScan], tokenizer: Path | None, resume: bool) -> None:
    """Writes the config and the tokenizers of a run, in one pass over the catalogue and one over the positives."""
    prepared, start = resume and (run / RUN_TOKENIZER).is_file(), config.start
    kept: dict[str, bytes] = {}
    if start and tokenizer:
        raise InputError(f"tokenizer {tokenizer}: a run with a start uses that of {start}: leave one out")
    if start and not prepared:
        config, kept = fill_from_start(config)
        tokenizer = Path(start) / RUN_TOKENIZER
    if tokenizer and not tokenizer.is_file():
        raise InputError(f"tokenizer {tokenizer}: there is no such file")
    model = SentencePiece(tokenizer.read_bytes()).model if tokenizer else None
    if prepared:
        scans[0].read()
        save_config(config, run / "config.toml")
        return
    config, vocabularies = fill_encoders(config, kept)
    vocabularies |= kept
    if model is None:
        console.print("training the tokenizer")
        texts = (text for scan in reversed(scans) for text in scan.texts())
        model = train_tokenizer(texts, **config.tokenizer.model_dump())
    else:
        console.print(f"using the tokenizer {tokenizer}")
        for scan in scans:
            scan.read()
    for scan in scans:
        config = scan.fill_categories(config)
    save_config(config, run / "config.toml")
    files = {ENCODER_TOKENIZER.format(name): vocabulary for name, vocabulary in vocabularies.items()}
    for name, content in {**files, RUN_TOKENIZER: model}.items():
        with atomic_write(run / name) as partial:
            partial.write_bytes(content)


def _check_negative_rank(config: Config, examples: Examples) -> None:
    stage2, rows = config.stage2, examples.rows_per_batch(config.stage2.batch_size)
    if stage2.max_epochs and stage2.negative_rank >= rows:
        raise InputError(
            f"stage2.negative_rank is {stage2.negative_rank}, but a batch of the {len(examples):,} positives has only "
            f"{rows - 1} other documents, so that no query would have a negative: lower it"
        )


def _resumed_config(config: Config, run: Path) -> Config:
    """The config of the run to resume, which must be equal to `config` except for the end of stage 1."""
    kept = read_run_config(run)
    requested = fill_open_values(config, kept)
    stage1 = requested.stage1.model_copy(update={"max_epochs": kept.stage1.max_epochs})
    stage2 = requested.stage2.model_copy(update={"unconverged": kept.stage2.unconverged})
    same_end = requested.model_copy(update={"stage1": stage1, "stage2": stage2})
    if same_end != kept:
        changed = [key for key in type(kept).model_fields if getattr(same_end, key) != getattr(kept, key)]
        raise InputError(
            f"run {run}: was trained with another config (differs in {', '.join(changed)}): train into a new --out"
        )
    if requested != kept and read_history(run / "metrics.jsonl", 2):
        raise InputError(f"run {run}: its stage 2 has begun, so stage 1 cannot continue: train into a new --out")
    return requested
