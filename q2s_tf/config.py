"""The configuration of a run: channels, encoders, tokenizer, training stages.

`q2s_tf.config_files` reads it from a TOML file. The config of a run directory is resolved: it has the values of the
categorical channels and the geometry of pretrained encoders.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FORMAT = 3
"""Version of the layout of a run directory. Runs of other versions are refused."""

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=1, le=100)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Tower = Literal["query", "document"]


class Section(BaseModel):
    """A table of the config: typed, immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Channel(Section):
    tower: Tower
    input: Annotated[str, Field(min_length=1)]
    """The column it reads: a column of the documents table, or `query` or `country` in the query tower."""
    modality: str = ""
    """Group of the channel in gradient blending (title, description, images …); the input by default."""

    @model_validator(mode="before")
    @classmethod
    def _default_modality(cls, values: Any) -> Any:
        return {"modality": values["input"], **values} if isinstance(values, dict) and "input" in values else values


class TrigramsChannel(_Channel):
    """Hashed character 3-grams, sum-pooled."""

    kind: Literal["trigrams"]
    buckets: Positive = 100_000
    max_trigrams: Positive = 128


class CategoricalChannel(_Channel):
    """One of a closed set of values; any other value is a missing channel."""

    kind: Literal["categorical"]
    values: tuple[str, ...] = ()
    """Normalised values, in the order of their ids; training fills an empty list from the data."""
    max_values: Positive = 1_000


class TextChannel(_Channel):
    """A text through a transformer encoder."""

    kind: Literal["text"]
    encoder: str
    """Name of a table under `encoders`; channels with the same name share its weights, also those of both towers."""
    max_tokens: Positive = 32


class VectorsChannel(_Channel):
    """A set of pretrained vectors, through Deep Sets."""

    kind: Literal["vectors"]
    dimension: Positive
    max_vectors: Positive = 5
    hidden_dim: Annotated[int, Field(ge=0)] = 128
    """Width of the hidden layer. 0 for none: the vectors are finished embeddings, whose cosines are kept at first."""


Channel = Annotated[TrigramsChannel | CategoricalChannel | TextChannel | VectorsChannel, Field(discriminator="kind")]


Pooling = Literal["cls", "mean"]


class Pretrained(Section):
    """Constants of a pretrained model; training reads them from the preset."""

    tokenizer: Literal["wordpiece", "sentencepiece"]
    lowercase: bool = False
    """Whether a `wordpiece` model is uncased."""
    activation: Literal["gelu", "gelu_approximate"] = "gelu"
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Epsilon of the layer normalisations."""


class Encoder(Section):
    """A text encoder, from scratch or pretrained; the defaults are the geometry of the paper's query encoder.

    With a `preset`, training fills in the geometry and `pretrained`. The run is then independent of the preset.
    """

    preset: Annotated[str, Field(min_length=1)] | None = None
    """KerasHub preset (name or folder) of BERT or XLM-R, or a local Hugging Face folder; random weights by default."""
    num_layers: Positive = 2
    """Number of layers. With a `preset`: its first layers, all of them by default."""
    num_heads: Positive = 4
    hidden_dim: Positive = 128
    intermediate_dim: Positive = 384
    dropout: Probability = 0.1
    pooling: Pooling = "cls"
    """Vector of [CLS] in the last layer, as in the paper, or the mean over the tokens."""
    trainable: bool = True
    """False keeps the weights of a `preset`. Its outputs for the training texts are then computed once."""
    learning_rate_factor: Rate = 1.0
    """Factor on the `text_learning_rate` of the stages; use a value below 1 for a pretrained encoder."""
    pretrained: Pretrained | None = None

    @model_validator(mode="after")
    def _check_geometry(self) -> "Encoder":
        given = self.model_fields_set & {"num_heads", "hidden_dim", "intermediate_dim"}
        if self.preset and not self.pretrained and given:
            raise ValueError(f"{', '.join(sorted(given))}: comes from the preset {self.preset}: leave it out")
        if not self.trainable and not self.preset:
            raise ValueError("trainable = false needs a pretrained encoder: give it a preset, or leave trainable out")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of num_heads {self.num_heads}")
        return self


class Tokenizer(Section):
    """The SentencePiece model that training makes unless one is given."""

    vocabulary_size: Annotated[int, Field(ge=64, le=10_000_000)] = 150_000
    character_coverage: Annotated[float, Field(gt=0.9, le=1)] = 0.9995
    max_sentences: Positive = 2_000_000


class PseudoQueries(Section):
    """Extra positives: a document and a few words of its title as the query; off by default."""

    per_document: Annotated[int, Field(ge=0)] = 0
    batch_share: Probability = 0.5
    """Share of pseudo-queries in a batch."""


class Head(Section):
    """Second task of the document tower: to classify which frequent training queries led to the document."""

    queries: Annotated[int, Field(ge=0)] = 45_000
    """Number of queries; all of them if there are fewer, no head if 0. The default is the paper's."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Weight of the loss of the head."""


class Blending(Section):
    """Extra losses, each with one group of channels of a tower (gradient blending, eq. 6); off by default."""

    by: Literal["modality", "channel"] = "modality"
    """Groups: the channels of a modality, as in the paper, or each channel alone."""
    weight: Weight = 0.0
    """Weight of the loss of every group; 0 turns blending off."""
    weights: dict[Tower, dict[str, Weight]] = {}
    """Weights of single groups, instead of `weight`: `document.title = 0.5`, `query.query = 0`."""


class Distillation(Section):
    """Distillation of a teacher into the query tower; off without `teacher`."""

    teacher: Annotated[str, Field(min_length=1)] | None = None
    """The teacher: a run directory, whose query embeddings are the targets; a preset, whose text embeddings are; or a
    table (a file) with the columns `query` and `embedding`."""
    channels: Literal["text", "all"] = "text"
    """What is compared with the teacher: the text channels of the query tower alone, or all of its channels."""
    weight: Rate = 1.0
    """Weight of the distillation loss in the stages."""
    pooling: Pooling = "mean"
    """Pooling of a preset."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of distillation alone, over the distinct queries, before stage 1. They are short; use many."""
    batch_size: Positive = 768
    """Queries of a batch in these epochs."""
    learning_rate: Rate = 1e-3
    """Learning rate of these epochs."""


class Stage(Section):
    """Settings of both stages."""

    max_epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 768
    learning_rate: Rate = 7e-4
    text_learning_rate: Rate = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps until the full learning rate, at most a quarter of all."""
    patience: Positive = 3
    """Number of epochs without a better validation metric after which the stage ends."""
    hard_negatives: bool = False
    """Add to each positive of a batch one hard negative, mined from the catalogue at the beginning of each epoch."""


class Stage1(Stage):
    """In-batch softmax (eq. 2)."""

    max_epochs: Positive = 30
    scale: Scale = 20.0
    symmetric: bool = False
    """Use the mean of both directions, query to documents and document to queries (eq. 3)."""


class Stage2(Stage):
    """Curriculum on a hard in-batch negative (eq. 5 or 4), after stage 1 has converged; 0 epochs skip it."""

    max_epochs: Annotated[int, Field(ge=0)] = 10
    loss: Literal["margin_rank", "binary_cross_entropy"] = "margin_rank"
    """Eq. 5 or eq. 4."""
    margin: Annotated[float, Field(gt=0, le=2)] = 0.1
    """Margin of `margin_rank`; 0.1 to 0.2 in the paper. The best value depends on the spread of the cosines."""
    scale: Scale = 20.0
    """Scale of `binary_cross_entropy`."""
    negative_rank: Positive = 1
    """Rank of the negative among the other documents of the batch, by score; 1 is the hardest, as in the paper. A
    higher rank helps where a batch has several relevant documents for a query."""
    negatives: Literal["all", "same_country"] = "all"
    """Candidates for the negative: all documents of the batch, or those of the searcher's country. A missing country
    matches every country."""
    unconverged: bool = False
    """Allow stage 2 after a stage 1 that `max_epochs` ended before `patience` did."""

    @model_validator(mode="after")
    def _check_rank(self) -> "Stage2":
        if self.negative_rank >= self.batch_size:
            raise ValueError(
                f"negative_rank {self.negative_rank} must be less than batch_size {self.batch_size}: a query has "
                "batch_size - 1 negatives"
            )
        return self


class Evaluation(Section):
    """Lowest grade of a relevant document, in ROC AUC (`relevant_at`) and in recall over the catalogue."""

    relevant_at: float = 1.0
    recall_relevant_at: float | None = None
    """`relevant_at` by default."""
    validation_metric: Literal["roc_auc", "ndcg@10", "recall@10", "recall@100"] = "roc_auc"
    """Chooses the best epoch of a stage and its end. The recalls embed the whole catalogue after each epoch."""

    @property
    def recall_grade(self) -> float:
        """Lowest grade of a relevant document in recall over the catalogue."""
        return self.relevant_at if self.recall_relevant_at is None else self.recall_relevant_at


class Config(Section):
    """Everything that defines a model and its training."""

    format: int = FORMAT
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    start: Annotated[str, Field(min_length=1)] | None = None
    """A run directory whose weights training begins with. The config has all channels of that run and may have more."""
    dimension: Positive = 128
    """D, the width of the channel vectors and of the embeddings."""
    channels: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")], Channel]
    encoders: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")], Encoder] = {}
    tokenizer: Tokenizer = Tokenizer()
    clip_norm: Rate = 1.0
    pseudo_queries: PseudoQueries = PseudoQueries()
    head: Head | None = None
    """No head by default."""
    blending: Blending = Blending()
    distillation: Distillation = Distillation()
    stage1: Stage1 = Stage1()
    stage2: Stage2 = Stage2()
    evaluation: Evaluation = Evaluation()

    @field_validator("head")
    @classmethod
    def _no_head_without_queries(cls, head: Head | None) -> Head | None:
        return head if head and head.queries else None

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} is of another version of q2s_tf (this: {FORMAT}): train it again")
        for tower in TOWERS:
            if not self.tower_channels(tower):
                raise ValueError(f"the {tower} tower has no channel: declare at least one")
        for name, channel in self.channels.items():
            self._check_channel(name, channel)
        for tower, weights in self.blending.weights.items():
            if unknown := set(weights) - set(self.groups(tower)):
                names, groups = ", ".join(sorted(unknown)), ", ".join(self.groups(tower))
                raise ValueError(f"blending.weights.{tower}: {names} is no group of its channels (groups: {groups})")
        if self.distillation.teacher and not self.distilled_channels():
            raise ValueError("distillation.teacher is given, but the query tower has no text channel that could learn")
        return self

    def _check_channel(self, name: str, channel: Channel) -> None:
        if channel.kind == "text":
            if channel.encoder not in self.encoders:
                known = ", ".join(self.encoders) or "none"
                place = f"channels.{name}.encoder is '{channel.encoder}'"
                raise ValueError(f"{place}, which is not declared (declared: {known})")
            if self.encoders[channel.encoder].preset and channel.max_tokens < 3:
                raise ValueError(
                    f"channels.{name}.max_tokens is {channel.max_tokens}: it must be at least 3, because a pretrained "
                    "encoder's row has 2 tokens around the text"
                )
        place = f"channels.{name}.input is '{channel.input}'"
        if channel.tower == "query" and channel.input not in QUERY_INPUTS:
            raise ValueError(f"{place}: the query tower has only {QUERY_INPUTS}")
        readers = [other for other in self.channels.values() if other.input == channel.input]
        others = {other.kind == "vectors" and other.dimension for other in readers}
        if len(others) > 1 or (channel.input == IMAGES and channel.kind != "vectors"):
            raise ValueError(f"{place}, which holds other vectors, or none, elsewhere")
        if channel.kind == "vectors" and channel.input in TEXT_INPUTS:
            raise ValueError(f"{place}, a text: a vectors channel needs vectors")

    def tower_channels(self, tower: str) -> dict[str, Channel]:
        """The channels of one tower, in the order of the fusion."""
        return {name: channel for name, channel in self.channels.items() if channel.tower == tower}

    def text_channels(self, tower: str) -> dict[str, TextChannel]:
        """The channels of one tower that read a text through an encoder."""
        return {name: channel for name, channel in self.tower_channels(tower).items() if channel.kind == "text"}

    def tower_encoders(self, tower: str) -> dict[str, Encoder]:
        """The text encoders that the channels of one tower read."""
        return {channel.encoder: self.encoders[channel.encoder] for channel in self.text_channels(tower).values()}

    def starts_from_encoders(self) -> bool:
        """Whether pretrained encoders read texts in both towers."""
        return all(any(encoder.preset for encoder in self.tower_encoders(tower).values()) for tower in TOWERS)

    def distilled_channels(self) -> list[str]:
        """The channels of the query tower that are compared with the teacher."""
        text_only = self.distillation.channels == "text"
        return list(self.text_channels("query") if text_only else self.tower_channels("query"))

    def given_width(self) -> int | None:
        """The width of document vectors that are passed through, by a `vectors` channel without hidden layer."""
        channels = self.tower_channels("document").values()
        return next((each.dimension for each in channels if each.kind == "vectors" and not each.hidden_dim), None)

    def longest_texts(self) -> dict[str, int]:
        """The largest `max_tokens` of each text encoder, over the channels of both towers that share it."""
        longest: dict[str, int] = {}
        for channel in self.channels.values():
            if channel.kind == "text":
                longest[channel.encoder] = max(channel.max_tokens, longest.get(channel.encoder, 0))
        return longest

    def groups(self, tower: Tower) -> dict[str, list[str]]:
        """The channels of one tower by group of gradient blending."""
        groups: dict[str, list[str]] = {}
        for name, channel in self.tower_channels(tower).items():
            groups.setdefault(name if self.blending.by == "channel" else channel.modality, []).append(name)
        return groups

    def tower_inputs(self, tower: str) -> list[str]:
        """The raw inputs of one tower: those of the fixed signature first, then other inputs of its channels."""
        fixed = {"query": QUERY_INPUTS, "document": (*TEXT_INPUTS, IMAGES)}[tower]
        return list(dict.fromkeys([*fixed, *(channel.input for channel in self.tower_channels(tower).values())]))

    def vector_inputs(self) -> dict[str, int | None]:
        """The inputs that hold vectors, with the width of the vectors; None if no channel reads them."""
        widths = {channel.input: channel.dimension for channel in self.channels.values() if channel.kind == "vectors"}
        return {IMAGES: None} | widths


TOWERS: tuple[Tower, ...] = ("query", "document")
QUERY_INPUTS = ("query", "country")
TEXT_INPUTS = ("title", "description", "language", "country")
IMAGES = "image_embeddings"
"""The input of the fixed signatures that holds vectors `[batch, M, I]`."""
