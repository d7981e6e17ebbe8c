"""Reading and writing a run directory."""

import tomllib
from pathlib import Path

import keras

from q2s_tf.config import FORMAT, Config
from q2s_tf.config_files import check_config
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write
from q2s_tf.models.towers import Towers, build_towers

RUN_TOKENIZER = "tokenizer.model"
"""File of the tokenizer that q2s_tf trained."""

ENCODER_TOKENIZER = "tokenizer-{}.model"
"""File of the tokenizer of a pretrained encoder, by encoder."""

STAGE_WEIGHTS = {1: "stage1.weights.h5", 2: "stage2.weights.h5"}


def read_run_config(run: Path) -> Config:
    """The resolved config of a run directory.

    Raises:
        InputError: no such directory, not a run directory, or one of another version of q2s_tf.
    """
    path = run / "config.toml"
    if not path.is_file():
        raise InputError(f"run {run}: not a run directory (no config.toml in it): give the --out of q2s train")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"run {run}: config.toml is not a TOML file in UTF-8: {error}") from None
    if tables.get("format") != FORMAT:
        raise InputError(
            f"run {run}: its format is {tables.get('format')!r}, this q2s_tf reads {FORMAT}: train it again or use the "
            "q2s_tf that wrote it"
        )
    return check_config(tables, str(path))


def read_tokenizers(run: Path, config: Config) -> dict[str, bytes]:
    """Serialised tokenizer of each text encoder of a run, by encoder.

    Raises:
        InputError: a file is missing.
    """
    tokenizers = {}
    for name in config.longest_texts():
        path = run / (ENCODER_TOKENIZER.format(name) if config.encoders[name].pretrained else RUN_TOKENIZER)
        if not path.is_file():
            raise InputError(f"tokenizer {path}: there is no such file")
        tokenizers[name] = path.read_bytes()
    return tokenizers


def load(run: Path | str, stage: int | None = None) -> Towers:
    """Loads the trained towers of a run.

    Args:
        run: a run directory.
        stage: 1 or 2; by default the last stage that was trained.

    Returns:
        The towers: `load(run).encode_queries(["red sofa"], countries=["US"])`.

    Raises:
        InputError: not a run directory, of another version, without trained weights, or with weights that do not fit.
    """
    run = Path(run)
    if stage not in (None, *STAGE_WEIGHTS):
        raise InputError(f"stage must be 1, 2 or None for the last one; got {stage!r}")
    config = read_run_config(run)
    tokenizers = read_tokenizers(run, config)
    stages = [stage] if stage else sorted(STAGE_WEIGHTS, reverse=True)
    weights = [run / STAGE_WEIGHTS[number] for number in stages if (run / STAGE_WEIGHTS[number]).is_file()]
    if not weights:
        wanted = " or ".join(STAGE_WEIGHTS[number] for number in stages)
        raise InputError(f"run {run}: no trained weights ({wanted}) in it: finish its training with q2s train")
    towers = build_towers(config, tokenizers)
    load_weights(towers, weights[0])
    return towers


def load_weights(model: keras.Model, path: Path) -> None:
    """Reads weights into a model; `InputError` if the file is damaged or belongs to another model."""
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError, RuntimeError, IndexError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"weights {path}: damaged, or of a model with other channels or sizes: {reason}") from error


def save_weights(model: keras.Model, path: Path) -> None:
    """Writes the weights of a model, and the state of its optimizer; the file is complete or absent."""
    with atomic_write(path) as partial:
        model.save_weights(partial)
