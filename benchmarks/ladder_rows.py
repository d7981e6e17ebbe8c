"""The rows of the ladder and the parts of the full model that each of them has."""

from typing import NamedTuple

from q2s_tf.config import Config
from q2s_tf.config_files import check_config
from q2s_tf.errors import InputError


class Training(NamedTuple):
    """The parts of the full model that one training has.

    Attributes:
        kinds: kinds of channels that some rows do not have; all other kinds are in every row.
        techniques: of "curriculum", "rate", "head", "blending"; "concat" is another fusion, and "continued" trains
            stage 2 with the loss of stage 1. Both are in `comparisons.py`.
    """

    kinds: frozenset[str]
    techniques: frozenset[str]


def _training(kinds: str, techniques: str = "") -> Training:
    return Training(frozenset(kinds.split()), frozenset(techniques.split()))


TRAININGS = {
    "trigrams": _training(""),
    "text": _training("text"),
    "images": _training("vectors"),
    "curriculum": _training("text vectors", "curriculum"),
    "rate": _training("text vectors", "curriculum rate"),
    "head": _training("text vectors", "curriculum rate head"),
    "full": _training("text vectors", "curriculum rate head blending"),
    "continued": _training("text vectors", "curriculum rate head blending continued"),
    "concat": _training("text vectors", "curriculum rate head blending concat"),
}
"""Trainings by the name of their folder."""


class Row(NamedTuple):
    """One row of the ladder.

    Attributes:
        name: what it adds.
        training: the training whose weights are measured.
        stage: stage of that training.
        against: training and stage of the row it is compared with.
    """

    name: str
    training: str
    stage: int
    against: tuple[str, int] | None


ROWS = (
    Row("3-grams", "trigrams", 1, None),
    Row("+ text", "text", 1, ("trigrams", 1)),
    Row("+ images instead of text", "images", 1, ("trigrams", 1)),
    Row("+ text and images", "curriculum", 1, ("trigrams", 1)),
    Row("+ curriculum (stage 2)", "curriculum", 2, ("curriculum", 1)),
    Row("+ separate text rate", "rate", 2, ("curriculum", 2)),
    Row("+ classification head", "head", 2, ("rate", 2)),
    Row("+ grouped blending: full model", "full", 2, ("head", 2)),
    Row("full model without stage 2", "full", 1, ("full", 2)),
    Row("full model, stage 1 goes on for stage 2", "continued", 2, ("full", 1)),
    Row("full model, concat + MLP for attention", "concat", 2, ("full", 2)),
)


def ablate(full: Config, training: Training, seed: int) -> Config:
    """The config of the full model without the parts that a training does not have."""
    tables = full.model_dump(mode="json", exclude_none=True)
    optional = {"text", "vectors"} - training.kinds
    tables["seed"] = seed
    tables["channels"] = {k: each for k, each in tables["channels"].items() if each["kind"] not in optional}
    used = {each.get("encoder") for each in tables["channels"].values()}
    tables["encoders"] = {name: each for name, each in tables["encoders"].items() if name in used}
    if "text" not in training.kinds:
        del tables["distillation"]
    if "rate" not in training.techniques:
        for name, stage in (("stage1", full.stage1), ("stage2", full.stage2)):
            tables[name]["text_learning_rate"] = stage.learning_rate
        for encoder in tables["encoders"].values():
            encoder["learning_rate_factor"] = 1.0
    if "curriculum" not in training.techniques:
        tables["stage2"] = {"max_epochs": 0}
    for technique in {"head", "blending"} - training.techniques:
        del tables[technique]
    if "continued" in training.techniques:
        tables["stage2"] |= {"batch_size": full.stage1.batch_size, "negatives": "all", "negative_rank": 1}
    return check_config(tables, "of the ladder")


def rows_of(full: Config) -> list[Row]:
    """The rows that are possible with the channels of the full model."""
    kinds = {channel.kind for channel in full.channels.values()}
    if "vectors" in kinds:
        return list(ROWS)
    rows = [row for row in ROWS if row.training not in ("text", "images")]
    return [row._replace(name=row.name.replace("+ text and images", "+ text")) for row in rows]


def check_full(full: Config) -> None:
    """`InputError` unless the config has every technique of the ladder."""
    stages = (full.stage1, full.stage2)
    lacks = {
        "a text channel": not (full.text_channels("query") and full.text_channels("document")),
        "head.queries": not full.head,
        "blending.weight": not (full.blending.weight or full.blending.weights),
        "stage2.max_epochs": not full.stage2.max_epochs,
        "a stage1.text_learning_rate of its own": all(s.text_learning_rate == s.learning_rate for s in stages),
        "stage2.unconverged = false": full.stage2.unconverged,
    }
    if missing := [name for name, lacking in lacks.items() if lacking]:
        raise InputError(
            f"the config must be the full model, and lacks {', '.join(missing)}: set it, or --set KEY=VALUE"
        )
