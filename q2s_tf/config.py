"""The typed configuration of a run: channels, encoders, tokenizer, training stages.

A config is a TOML file. Every table below is checked when it is read: an unknown key, a value out of range or a channel
that names an encoder that is not there is one `InputError`. `save_config` writes the resolved config, with everything
that training filled in (the values of categorical channels), so that a run directory describes itself.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write

FORMAT = 1
"""Version of the run directory's layout. A run of another version is refused rather than misread."""

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=1, le=100)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Tower = Literal["query", "document"]


class Table(BaseModel):
    """A table of the config: typed, immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Channel(Table):
    tower: Tower
    input: Annotated[str, Field(min_length=1)]
    """The column it reads: a column of the documents table, or `query` or `country` in the query tower."""
    modality: str = ""
    """What it is grouped under (title, description, images …); its input when not given."""

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
    """Normalised values, in the order of their ids; training fills it from the data when it is empty."""
    max_values: Positive = 1_000


class TextChannel(_Channel):
    """A text through a transformer encoder."""

    kind: Literal["text"]
    encoder: str
    """Name of a table under `encoders`; channels that name the same one share its weights."""
    max_tokens: Positive = 32


class VectorsChannel(_Channel):
    """A set of pretrained vectors, through Deep Sets."""

    kind: Literal["vectors"]
    dimension: Positive
    max_vectors: Positive = 5
    hidden_dim: Positive = 128


Channel = Annotated[TrigramsChannel | CategoricalChannel | TextChannel | VectorsChannel, Field(discriminator="kind")]


Pooling = Literal["cls", "mean"]


class Pretrained(Table):
    """What a preset says of its model beside the geometry; training fills it in."""

    tokenizer: Literal["wordpiece", "sentencepiece"]
    lowercase: bool = False
    """Of `wordpiece`: the model is an uncased one."""
    activation: Literal["gelu", "gelu_approximate"] = "gelu"
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Of its layer normalisations."""


class Encoder(Table):
    """A text encoder: the geometry of XLM-R, or a pretrained BERT or XLM-R; the defaults are the paper's query encoder.

    With a `preset` training fills in the geometry and `pretrained`, so that a run needs its preset no more.
    """

    preset: Annotated[str, Field(min_length=1)] | None = None
    """A keras_hub preset (its name, or a folder), or a local Hugging Face folder; weights from scratch without one."""
    num_layers: Positive = 2
    """With a `preset` its first n layers, all of them when not given."""
    num_heads: Positive = 4
    hidden_dim: Positive = 128
    intermediate_dim: Positive = 384
    dropout: Probability = 0.1
    pooling: Pooling = "cls"
    """The last layer's vector of [CLS], the paper's choice, or the mean over the tokens."""
    frozen: bool = False
    """Of a `preset`: its weights stay as they are, and what it says of every text of the training is computed once."""
    learning_rate_factor: Rate = 1.0
    """Times a stage's `text_learning_rate` is the rate of its weights: a pretrained encoder wants a lower one."""
    pretrained: Pretrained | None = None

    @model_validator(mode="after")
    def _check_geometry(self) -> "Encoder":
        given = self.model_fields_set & {"num_heads", "hidden_dim", "intermediate_dim"}
        if self.preset and not self.pretrained and given:
            raise ValueError(f"{', '.join(sorted(given))}: comes from the preset {self.preset}: leave it out")
        if self.frozen and not self.preset:
            raise ValueError("frozen is for a pretrained encoder: give it a preset, or leave frozen out")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of num_heads {self.num_heads}")
        return self


class Tokenizer(Table):
    """The SentencePiece model that training makes when it is given none."""

    vocabulary_size: Annotated[int, Field(ge=64, le=10_000_000)] = 150_000
    character_coverage: Annotated[float, Field(gt=0.9, le=1)] = 0.9995
    max_sentences: Positive = 2_000_000


class PseudoQueries(Table):
    """Extra pairs of a document and a query made from its title (`q2s_tf.training.pseudo_queries`); off by default."""

    per_document: Annotated[int, Field(ge=0)] = 0
    batch_share: Probability = 0.5
    """Share of every batch that they make up."""
    variants: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Other spellings of a word of the titles, one of which is typed in its place: `ft = ["ft", "foot", "feet"]`."""


class Head(Table):
    """A second task for the document tower: which of the most frequent training queries led to the document."""

    queries: Annotated[int, Field(ge=0)] = 45_000
    """How many of them; all when there are fewer, no head when 0. The default is the paper's."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Of its loss beside the stage's own."""


class Blending(Table):
    """Extra losses, each with one group of a tower's channels alone (gradient blending, eq. 6); off by default."""

    by: Literal["modality", "channel"] = "modality"
    """What is a group: the channels of one modality (the paper's choice), or each channel by itself."""
    weight: Weight = 0.0
    """Of every group's loss beside the loss of the whole; 0 is no blending."""
    weights: dict[Tower, dict[str, Weight]] = {}
    """Of single groups, in the place of `weight`: `document.title = 0.5`, `query.query = 0`."""


class Distillation(Table):
    """A teacher for the query tower's text channels: 1 − cos(theirs, the teacher's), off without `teacher`."""

    teacher: Annotated[str, Field(min_length=1)] | None = None
    """A run, whose query embeddings are to be met, or a preset, as of an encoder, whose vectors of the query are."""
    weight: Rate = 1.0
    """Of its loss beside the stage's own."""
    pooling: Pooling = "mean"
    """Of a preset."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Over the distinct queries, before stage 1 and with this loss alone: a small encoder needs many, of quick ones."""
    learning_rate: Rate = 1e-3
    """Of these epochs."""


class Stage(Table):
    """What both stages have: how long, in what batches, at what rates."""

    max_epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 768
    learning_rate: Rate = 7e-4
    text_learning_rate: Rate = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    patience: Positive = 3
    """Epochs without a better validation ROC AUC after which the stage ends."""


class Stage1(Stage):
    """In-batch softmax (eq. 2)."""

    max_epochs: Positive = 30
    scale: Scale = 20.0
    symmetric: bool = False
    """The mean of query to documents and document to queries (eq. 3)."""
    popularity_correction: bool = False
    """Subtract ln(how often a document is drawn) from its scores: popular ones are negatives too often (logQ)."""


class Stage2(Stage):
    """Curriculum on a hard in-batch document (eq. 5 or 4), from the converged stage 1; 0 epochs skip it."""

    max_epochs: Annotated[int, Field(ge=0)] = 10
    loss: Literal["margin_rank", "binary_cross_entropy", "softmax"] = "margin_rank"
    """`softmax` is that of stage 1 going on: what a curriculum is to be compared with."""
    margin: Annotated[float, Field(gt=0, le=2)] = 0.1
    """Of `margin_rank`. The paper has 0.1 to 0.2; what it must be depends on how far apart stage 1 left the cosines."""
    scale: Scale = 20.0
    """Of `binary_cross_entropy` and `softmax`."""
    negative_rank: Positive = 1
    """Which document of the batch a query's negative is, by score from the highest: 1 is the hardest, as in the paper.
    Where a batch holds several right answers to a query the first ones are no negatives, and a later one serves."""
    negatives: Literal["all", "same_country"] = "all"
    """Of which documents of the batch: of all, or of those of the searcher's country. A document or a query without a
    country counts as of any."""
    unconverged: bool = False
    """Start from a stage 1 that its `max_epochs` ended before `patience` did; refused otherwise."""

    @model_validator(mode="after")
    def _check_rank(self) -> "Stage2":
        if self.negative_rank >= self.batch_size:
            raise ValueError(
                f"negative_rank {self.negative_rank} must be less than batch_size {self.batch_size}: a query has one "
                "negative less than its batch has documents"
            )
        return self


class Evaluation(Table):
    """From which grade on a judged document counts as relevant, in ROC AUC and in recall over the catalogue."""

    relevant_at: float = 1.0
    recall_relevant_at: float | None = None
    """`relevant_at` when not given."""


class Config(Table):
    """Everything that defines a model and its training."""

    format: int = FORMAT
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    dimension: Positive = 128
    """D, the width of every channel vector and of both towers' embeddings."""
    fusion: Literal["attention", "concat_mlp"] = "attention"
    """How a tower makes one vector of its channels': weighed by attention (eq. 1), or put beside each other and through
    a hidden layer, which has no weights that say what a channel counts for."""
    channels: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")], Channel]
    encoders: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")], Encoder] = {}
    tokenizer: Tokenizer = Tokenizer()
    clip_norm: Rate = 1.0
    mixed_precision: bool | None = None
    """Whether training computes the products inside the text encoders in bfloat16; None is where the GPU has units for
    it. Weights, losses and all that is written or served are float32 in any case."""
    pseudo_queries: PseudoQueries = PseudoQueries()
    head: Head | None = None
    """No head without this table."""
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
            raise ValueError(
                f"format {self.format} is of another version of q2s_tf, which reads {FORMAT}: train it again"
            )
        for tower in TOWERS:
            if not self.tower_channels(tower):
                raise ValueError(f"the {tower} tower has no channel: declare at least one")
        for name, channel in self.channels.items():
            if channel.kind == "text" and channel.encoder not in self.encoders:
                known = ", ".join(self.encoders) or "none"
                raise ValueError(
                    f"channels.{name}.encoder is '{channel.encoder}', which is not declared (declared: {known})"
                )
            if channel.kind == "text" and self.encoders[channel.encoder].preset and channel.max_tokens < 3:
                raise ValueError(
                    f"channels.{name}.max_tokens is {channel.max_tokens}: a pretrained encoder's row has 2 tokens "
                    "around the text, so it must be at least 3"
                )
            if channel.tower == "query" and channel.input not in QUERY_INPUTS:
                raise ValueError(f"channels.{name}.input is '{channel.input}': the query tower has only {QUERY_INPUTS}")
            others = {c.kind == "vectors" and c.dimension for c in self.channels.values() if c.input == channel.input}
            if len(others) > 1 or (channel.input == IMAGES and channel.kind != "vectors"):
                raise ValueError(
                    f"channels.{name}.input is '{channel.input}', which holds other vectors, or none, elsewhere"
                )
            if channel.kind == "vectors" and channel.input in TEXT_INPUTS:
                raise ValueError(f"channels.{name}.input is '{channel.input}', a text: a vectors channel needs vectors")
        for tower, weights in self.blending.weights.items():
            if unknown := set(weights) - set(self.groups(tower)):
                raise ValueError(
                    f"blending.weights.{tower}: {', '.join(sorted(unknown))} is no group of its channels (groups: "
                    f"{', '.join(self.groups(tower))})"
                )
        if self.distillation.teacher and not self.text_channels("query"):
            raise ValueError("distillation.teacher is given, but the query tower has no text channel that could learn")
        for encoder in self.encoders:
            towers = {
                channel.tower for channel in self.channels.values() if getattr(channel, "encoder", None) == encoder
            }
            if len(towers) > 1:
                raise ValueError(f"encoders.{encoder} is used by both towers; the towers share no weights")
        return self

    def tower_channels(self, tower: str) -> dict[str, Channel]:
        """The channels of one tower, in the order of the fusion."""
        return {name: channel for name, channel in self.channels.items() if channel.tower == tower}

    def text_channels(self, tower: str) -> dict[str, TextChannel]:
        """Those of `tower_channels` that read a text through an encoder."""
        return {name: channel for name, channel in self.tower_channels(tower).items() if channel.kind == "text"}

    def frozen_channels(self, tower: str) -> dict[str, Encoder]:
        """Those of `text_channels` whose encoder does not learn, with it."""
        encoders = {name: self.encoders[channel.encoder] for name, channel in self.text_channels(tower).items()}
        return {name: encoder for name, encoder in encoders.items() if encoder.frozen}

    def longest_texts(self, tower: str) -> dict[str, int]:
        """The most tokens that each encoder of one tower reads, over the channels that share it."""
        longest: dict[str, int] = {}
        for channel in self.text_channels(tower).values():
            longest[channel.encoder] = max(channel.max_tokens, longest.get(channel.encoder, 0))
        return longest

    def groups(self, tower: Tower) -> dict[str, list[str]]:
        """The channels of one tower by the group that gradient blending trains alone."""
        groups: dict[str, list[str]] = {}
        for name, channel in self.tower_channels(tower).items():
            groups.setdefault(name if self.blending.by == "channel" else channel.modality, []).append(name)
        return groups

    def tower_inputs(self, tower: str) -> list[str]:
        """The raw inputs of one tower: those fixed by the signatures first, then any other a channel reads."""
        fixed = {"query": QUERY_INPUTS, "document": (*TEXT_INPUTS, IMAGES)}[tower]
        return list(dict.fromkeys([*fixed, *(channel.input for channel in self.tower_channels(tower).values())]))

    def vector_inputs(self) -> set[str]:
        """The inputs that hold vectors."""
        return {IMAGES, *(channel.input for channel in self.channels.values() if channel.kind == "vectors")}


TOWERS: tuple[Tower, ...] = ("query", "document")
QUERY_INPUTS = ("query", "country")
TEXT_INPUTS = ("title", "description", "language", "country")
IMAGES = "image_embeddings"
"""The one input of the fixed signatures that is not a text: vectors, `[B, M, I]`."""


def read_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Reads and checks a TOML config.

    Args:
        path: the file.
        overrides: `key=value` with a dotted key and a TOML value (`stage1.batch_size=512`); a bare word is a string.

    Raises:
        InputError: the file is not there or not TOML, or a key or value breaks a rule.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"config {path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not a TOML file in UTF-8: {error}") from None
    for override in overrides or []:
        _override(tables, override)
    return check_config(tables, str(path))


def check_config(tables: dict[str, Any], source: str) -> Config:
    """Validates plain tables as a `Config`; `source` names them in the `InputError` if they break a rule."""
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        raise InputError(f"config {source}: " + "; ".join(problems)) from None


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved config as TOML, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")


def _override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected key=value, for example stage1.batch_size=512")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        if not isinstance(tables, dict):
            raise InputError(f"--set {override}: '{parent}' is a value, not a table")
    tables[last] = value


def _describe(problem: Any) -> str:
    parts = [str(part) for part in problem["loc"]]
    if parts[:1] == ["channels"] and parts[2:3]:
        del parts[2]  # the kind, by which pydantic tells the tables of channels apart; no key of the file
    place = ".".join(parts) or "the whole"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{place}'"
    if problem["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if problem["loc"] else message
    return f"{place}: {message} (got {problem['input']!r})"
