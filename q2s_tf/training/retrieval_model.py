"""Both towers in training, as one Keras model."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from q2s_tf import losses
from q2s_tf.config import TOWERS, Config, Stage
from q2s_tf.evaluation.metrics import batch_hits
from q2s_tf.examples.batches import NO_COUNTRY
from q2s_tf.models import Towers
from q2s_tf.training.optimizer import LazyAdam, decaying_rate
from q2s_tf.training.recommenders import tfrs
from q2s_tf.training.workers import gather, num_replicas, own_rows

Loss = Callable[..., Any]
"""A function of `q2s_tf.losses` of scores, mask, sample_weight and reduction."""


class RetrievalModel(keras.Model):
    """Trains two towers with in-batch negatives through a retrieval task of TensorFlow Recommenders.

        loss = L(q, d) + Σ_g w_g·L(q, d with the channels of group g only in their tower) + w_head·head(d)
            + w_distillation·(1 − cos(q with the channels of `distillation.channels` only, teacher))

    L is the loss of the stage. The sum over groups is gradient blending (eq. 6): channel vectors are computed once and
    fused once more for each group. A row without any channel of a group has no part in the loss of the group.

    Fit it on batches of `Examples.dataset`:

    ```python
    model = RetrievalModel(towers)
    model.compile(LazyAdam(7e-4, clip_norm=1.0), loss=losses.in_batch_softmax, scale=20)
    model.fit(examples.dataset(batch_size=768, seed=(17,)), epochs=10)
    ```

    Args:
        towers: the towers; `config` of the towers sets the weights of blending, head and distillation.
        head: `classification_head`, from a document embedding `[batch, D]` to logits `[batch, C]`, or None. It is not
            part of the towers.
    """

    def __init__(self, towers: Towers, head: keras.layers.Dense | None = None, **kwargs: Any):
        super().__init__(**{"name": "retrieval_model", **kwargs})
        self.towers = towers
        self.config: Config = towers.config
        self.head = head
        self.groups = blended_groups(self.config)
        self._trackers = {name: keras.metrics.Mean(name) for name in self._metric_names()}
        self.built = True

    def compile(
        self,
        optimizer: Any,
        loss: Loss = losses.in_batch_softmax,
        scale: float | None = None,
        reduction: str = "mean",
        same_country: bool = False,
        **kwargs: Any,
    ) -> None:
        """Configures training.

        Args:
            optimizer: a Keras optimizer; it receives sparse gradients of the tables.
            loss: loss of the scores of a batch.
            scale: s, factor on the cosines; None for 1.
            reduction: "mean" or "sum", of every loss over the rows of a batch. The reported losses are means by weight.
            same_country: use only documents of the searcher's country as negatives.
            **kwargs: of `keras.Model.compile`.
        """
        super().compile(optimizer=optimizer, **{"jit_compile": False, **kwargs})
        self.reduction, self.same_country = reduction, same_country

        def task_loss(y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor) -> tf.Tensor:
            return loss(y_pred, sample_weight=sample_weight, reduction=reduction)  # the task has masked the scores

        task = tfrs.tasks.Retrieval(loss=task_loss, temperature=1 / scale if scale else None)
        # The task is Keras 2 code that takes the length of a shape, which needs AutoGraph; Keras 3 turns it off.
        self.task = tf.function(lambda query, document, **options: task(query, document, **options))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Cosines of raw queries and documents; see `Towers`."""
        return self.towers(inputs, training=training)

    def encode(self, side: str, inputs: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Channel vectors `[batch, N, D]` of preprocessed inputs and their mask, with dropout.

        Each replica encodes its share of the rows and receives the rows of all replicas.
        """
        vectors, mask = getattr(self.towers, side).encode_channels(own_rows(inputs), training=True)
        return gather(tf.cast(vectors, tf.float32)), gather(tf.cast(mask, tf.int32)) > 0  # bools cannot be gathered

    def fuse(self, side: str, vectors: Any, mask: Any, *, only: list[str] | None = None) -> tf.Tensor:
        """The embedding `[batch, D]` of channel vectors, of all channels or of those in `only`."""
        tower = getattr(self.towers, side)
        if only is not None:
            mask = mask & tf.constant([name in only for name in tower.channel_names])
        return tower.fuse(vectors, mask)[0]

    def retrieval_loss(self, batch: Mapping[str, Any], query: tf.Tensor, document: tf.Tensor) -> tf.Tensor:
        """The loss of the stage for embeddings `[batch, D]`; rows of zeros have no part in it."""
        query_present, document_present = tf.reduce_any(query != 0, axis=1), tf.reduce_any(document != 0, axis=1)
        negatives = document_present[tf.newaxis] & (match_countries(batch) if self.same_country else True)
        rows = tf.shape(query)[0]
        own = tf.eye(rows, tf.shape(document)[0], dtype=tf.bool)
        return self.task(
            query,
            document,
            sample_weight=batch["weight"] * tf.cast(query_present & document_present[:rows], tf.float32),
            score_mask=batch["score_mask"] & (negatives | own),
            compute_metrics=False,
            compute_batch_metrics=False,
        )

    def compute_losses(self, batch: Mapping[str, Any]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """The parts of the loss by name, and the embeddings of both towers."""
        channels: dict[str, tuple[tf.Tensor, tf.Tensor]] = {side: self.encode(side, batch[side]) for side in TOWERS}
        embeddings: dict[str, tf.Tensor] = {side: self.fuse(side, *channels[side]) for side in TOWERS}
        parts = {"retrieval_loss": self.retrieval_loss(batch, **embeddings)}
        if self.groups:
            blended = [
                self.retrieval_loss(batch, **{**embeddings, side: self.fuse(side, *channels[side], only=members)})
                for side, members, _ in self.groups
            ]
            parts["blended_loss"] = losses.gradient_blending(blended, [weight for *_, weight in self.groups])
        if self.head is not None and self.config.head is not None:
            positives = embeddings["document"][: tf.shape(embeddings["query"])[0]]
            logits = self.head(self.config.stage1.scale * positives)
            loss = losses.query_classification(logits, batch["labels"], reduction=self.reduction)
            parts["head_loss"] = self.config.head.weight * loss
        if "teacher" in batch:
            student = self.fuse("query", *channels["query"], only=self.config.distilled_channels())
            loss = losses.cosine_distillation(student, batch["teacher"], reduction=self.reduction)
            parts["distillation_loss"] = self.config.distillation.weight * loss
        return parts, embeddings

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """One step on a batch of `Examples.dataset`, the global batch in every replica.

        Returns:
            Means over the epoch: `loss` and its parts, each a mean by weight, and `batch_recall@1`.
        """
        with tf.GradientTape() as tape:
            parts, embeddings = self.compute_losses(batch)
            loss = losses.gradient_blending(list(parts.values()))
            share = self.optimizer.scale_loss(loss / num_replicas())  # for float16; the optimizer divides again
        self.optimizer.apply(tape.gradient(share, self.trainable_variables), self.trainable_variables)
        values = {"loss": loss, **(parts if len(parts) > 1 else {})}
        if self.reduction == "sum":
            values = {name: value / tf.reduce_sum(batch["weight"]) for name, value in values.items()}
        hits = batch_hits(embeddings["query"], embeddings["document"], batch["score_mask"], 1)
        values["batch_recall@1"] = tf.reduce_mean(tf.cast(hits, tf.float32))
        for name, value in values.items():
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in values}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means that an epoch resets."""
        return list(self._trackers.values())

    def learning_rate_factors(self, text_factor: float) -> dict[str, float]:
        """Factors on the learning rate by variable path.

        The variables of a text encoder have its factor times `text_factor`. If both towers start from pretrained
        encoders, so have the projections of their vectors, which begin as rotations and keep the cosines.
        """
        layers: list[tuple[str, keras.layers.Layer]] = list(self.towers.text_encoders.items())
        if self.config.starts_from_encoders():
            for tower in (self.towers.query, self.towers.document):
                texts = self.config.text_channels(tower.side)
                layers += [(channel.encoder, tower.channel_layers[name]) for name, channel in texts.items()]
        return {
            variable.path: text_factor * self.config.encoders[name].learning_rate_factor
            for name, layer in layers
            for variable in layer.trainable_variables
        }

    def _metric_names(self) -> list[str]:
        parts = ["blended_loss"] if self.groups else []
        parts += ["head_loss"] if self.head is not None else []
        parts += ["distillation_loss"] if self.config.distillation.teacher else []
        return ["loss", *(["retrieval_loss", *parts] if parts else []), "batch_recall@1"]


def classification_head(num_labels: int, dimension: int) -> keras.layers.Dense:
    """A head that classifies which of `num_labels` frequent queries led to a document, initialised to 0."""
    head = keras.layers.Dense(num_labels, kernel_initializer="zeros", dtype="float32", name="head")
    head.build((None, dimension))
    return head


def compile_stage(model: RetrievalModel, stage: int, steps_per_epoch: int) -> None:
    """Compiles a model as the config of its towers says: eq. 2 or 3 in stage 1, eq. 5 or 4 in stage 2."""
    config = model.config
    settings: Stage = config.stage1 if stage == 1 else config.stage2
    steps = steps_per_epoch * settings.max_epochs
    rate = decaying_rate(settings.learning_rate, min(settings.warmup_steps, steps // 4), steps)
    factors = model.learning_rate_factors(settings.text_learning_rate / settings.learning_rate)
    optimizer = LazyAdam(rate, clip_norm=config.clip_norm, learning_rate_factors=factors)
    if stage == 1:
        loss: Loss = losses.symmetric_softmax if config.stage1.symmetric else losses.in_batch_softmax
        model.compile(optimizer, loss, config.stage1.scale)
        return
    rank, same_country = config.stage2.negative_rank, config.stage2.negatives == "same_country"
    if config.stage2.loss == "margin_rank":
        loss, scale = partial(losses.margin_rank, margin=config.stage2.margin, negative_rank=rank), None
    else:
        loss, scale = partial(losses.binary_cross_entropy, negative_rank=rank), config.stage2.scale
    model.compile(optimizer, loss, scale, reduction="sum", same_country=same_country)


def blended_groups(config: Config) -> list[tuple[str, list[str], float]]:
    """Groups of gradient blending: tower, channels of the group, weight of its loss."""
    blending = config.blending
    groups: list[tuple[str, list[str], float]] = []
    for side in TOWERS:
        members = config.groups(side)
        weights = {**dict.fromkeys(members, blending.weight), **blending.weights.get(side, {})}
        groups += [(side, members[group], weight) for group, weight in weights.items() if weight]
    return groups


def match_countries(batch: Mapping[str, Any]) -> tf.Tensor:
    """Whether document j is of the country of searcher i, bool `[batch, documents]`; a missing one matches all."""
    query, document = batch["query_country"][:, tf.newaxis], batch["document_country"][tf.newaxis]
    return (query == document) | (query == NO_COUNTRY) | (document == NO_COUNTRY)
