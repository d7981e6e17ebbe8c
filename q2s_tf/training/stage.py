"""One stage of training: epochs until the validation ROC AUC stops rising, and the best weights kept."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from q2s_tf.cli import console, progress_bar
from q2s_tf.errors import InputError
from q2s_tf.models import STAGE_WEIGHTS, load_weights, save_weights
from q2s_tf.training.examples import Examples
from q2s_tf.training.learner import Learner, everything
from q2s_tf.training.metrics_log import MetricsLog
from q2s_tf.training.optimisation import Optimizer
from q2s_tf.training.step import Step, build_step, stage_config
from q2s_tf.training.validation import Validation


class Progress(tf.Module):
    """How far a stage has come; part of its checkpoint."""

    def __init__(self) -> None:
        super().__init__(name="progress")
        self.epochs = tf.Variable(0, dtype=tf.int64)
        self.best = tf.Variable(-1.0, dtype=tf.float64)
        self.waited = tf.Variable(0, dtype=tf.int64)
        """Epochs since the best one."""


class Outcome(NamedTuple):
    """The best validation ROC AUC of a stage, and whether it stopped rising before the epochs ran out."""

    best: float
    converged: bool


def train_stage(
    stage: int, run: Path, learner: Learner, examples: Examples, validation: Validation, log: MetricsLog
) -> Outcome:
    """Trains one stage and writes `RUN/stageN.weights.h5` with the weights of its best epoch.

    An epoch's order of batches comes from the seed, the stage and the epoch; a checkpoint is written after each, from
    which a run that was cut short goes on. A stage that has ended is not trained again.

    Args:
        stage: 1 or 2.
        run: the run directory.
        learner: trained in place; its towers hold the best weights at the end.
        examples: what to learn from.
        validation: what decides which epoch is the best.
        log: takes the figures.

    Returns:
        How it ended.
    """
    towers, config, settings = learner.towers, learner.config, stage_config(learner.config, stage)
    batch_size = settings.batch_size
    steps = len(examples) // examples.positives_per_batch(batch_size)
    decay_steps = steps * settings.max_epochs
    workers = learner.workers
    optimizer = Optimizer(learner.variables, workers, learner.text_variables(), settings, config.clip_norm, decay_steps)
    progress = Progress()
    checkpoints = _restore(run / "checkpoints" / f"stage{stage}", learner, optimizer, progress)
    best = run / "checkpoints" / STAGE_WEIGHTS[stage]
    if not checkpoints.latest_checkpoint:
        # Stage 2 may never beat the stage 1 it starts from, and then its best weights are those.
        progress.best.assign(workers.agree(lambda: validation.roc_auc(towers)) if stage == 2 else -1.0)
        if workers.chief:
            best.parent.mkdir(exist_ok=True)
            save_weights(towers, best)
            checkpoints.save(checkpoint_number=0)
    if workers.chief:
        log.forget(stage, int(progress.epochs))
    step = build_step(learner, optimizer, stage, examples.dataset(batch_size, (config.seed,)).element_spec)
    while progress.epochs < settings.max_epochs and progress.waited < settings.patience:
        epoch = int(progress.epochs) + 1
        figures = _epoch(
            f"stage {stage} epoch {epoch}", step, examples.dataset(batch_size, (config.seed, stage, epoch)), steps
        )
        with console.status("validating"):
            figures["validation_roc_auc"] = workers.agree(lambda: validation.roc_auc(towers))
        improved = figures["validation_roc_auc"] > float(progress.best)
        if improved:
            if workers.chief:
                save_weights(towers, best)
            progress.best.assign(figures["validation_roc_auc"])
        progress.waited.assign(0 if improved else progress.waited + 1)
        progress.epochs.assign(epoch)
        if workers.chief:
            log.write(stage, epoch * steps, {"epoch": epoch, **figures})
            checkpoints.save(checkpoint_number=epoch)
        console.print(
            f"stage {stage} epoch {epoch}: loss {figures['loss']:.4f}, batch recall@1 {figures['batch_recall@1']:.3f}, "
            f"validation ROC AUC {figures['validation_roc_auc']:.4f}{' (best)' if improved else ''}, "
            f"{figures['seconds']:.0f} s, {figures['pairs_per_second']:.0f} pairs/s"
        )
    workers.wait()  # until the best weights are on disk
    load_weights(towers, best)
    if workers.chief:
        save_weights(towers, run / STAGE_WEIGHTS[stage])
    return Outcome(float(progress.best), bool(progress.waited >= settings.patience))


def _restore(folder: Path, learner: Learner, optimizer: Optimizer, progress: Progress) -> tf.train.CheckpointManager:
    """A manager of checkpoints of all state, also the dropout's random streams; the last one, if any, is restored."""
    checkpoint = tf.train.Checkpoint(
        learner=everything(learner),
        optimizer=[variable.value for adam, _ in optimizer.groups for variable in adam.variables],
        progress=progress,
    )
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2)
    if manager.latest_checkpoint:
        try:
            checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
        except (tf.errors.OpError, AssertionError, ValueError, IndexError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise InputError(
                f"checkpoint {manager.latest_checkpoint}: damaged, or of another model ({reason}): "
                f"delete {folder} to begin the stage anew"
            ) from error
        console.print(f"going on after epoch {int(progress.epochs)} of {folder.name}")
    return manager


def _epoch(title: str, step: Step, batches: tf.data.Dataset, steps: int) -> dict[str, float]:
    """Runs one epoch; returns the means of the step's figures, its seconds and its pairs per second."""
    sums: dict[str, float] = {}
    pairs = 0
    begin = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task(title, total=steps)
        for batch in batches:
            figures = {name: float(value) for name, value in step(batch).items()}
            if not np.isfinite(figures["loss"]):
                raise InputError(f"{title}: the loss is {figures['loss']}: lower the learning rates of the stage")
            sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
            pairs += len(batch["weight"])
            bar.update(task, advance=1, description=f"{title}: loss {figures['loss']:.4f}")
    seconds = time.perf_counter() - begin
    means = {name: value / steps for name, value in sums.items()}
    return {**means, "seconds": seconds, "pairs_per_second": pairs / seconds}
