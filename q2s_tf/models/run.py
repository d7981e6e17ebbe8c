"""Towers from and to a run directory."""

import tomllib
from pathlib import Path

from q2s_tf.config import FORMAT, Config, Pretrained, check_config
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write
from q2s_tf.models.towers import Towers, build_towers
from q2s_tf.text import PretrainedSentencePiece, PretrainedTokenizer, Tokenizer, WordPiece

OWN_TOKENIZER = "tokenizer-{}.model"
"""File of the tokenizer that a pretrained encoder has for itself, by the encoder's name."""

STAGE_WEIGHTS = {1: "stage1.weights.h5", 2: "stage2.weights.h5"}


def read_run_config(run: Path) -> Config:
    """The resolved config of a run directory.

    Raises:
        InputError: no such directory, not a run directory, or one of another version of q2s_tf.
    """
    path = run / "config.toml"
    if not path.is_file():
        raise InputError(f"run {run}: not a run directory (no config.toml in it): give the --out of tools/train.py")
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


def read_tokenizers(run: Path, config: Config) -> tuple[Tokenizer, dict[str, PretrainedTokenizer]]:
    """The tokenizer of a run, and those of its pretrained encoders by encoder, from `RUN/tokenizer-ENCODER.model`.

    Raises:
        InputError: a file that is not there, or is not what it should be.
    """
    own: dict[str, PretrainedTokenizer] = {}
    for name, encoder in config.encoders.items():
        if encoder.pretrained is None:
            continue
        path = run / OWN_TOKENIZER.format(name)
        if not path.is_file():
            raise InputError(f"tokenizer {path}: there is no such file")
        own[name] = pretrained_tokenizer(encoder.pretrained, path.read_bytes())
    return Tokenizer.read(run / "tokenizer.model"), own


def pretrained_tokenizer(settings: Pretrained, model: bytes) -> PretrainedTokenizer:
    """The tokenizer of a pretrained encoder, from its vocabulary or its SentencePiece model."""
    return WordPiece(model, settings.lowercase) if settings.tokenizer == "wordpiece" else PretrainedSentencePiece(model)


def load(run: Path | str, stage: int | None = None) -> Towers:
    """Loads the trained towers of a run.

    Args:
        run: a run directory.
        stage: 1 or 2; the last stage that was trained when None.

    Returns:
        The towers: `load(run).query.predict({"query": ["red sofa"], "country": ["US"]})`.

    Raises:
        InputError: not a run directory, of another version, without trained weights, or with weights that do not fit.
    """
    run = Path(run)
    if stage not in (None, *STAGE_WEIGHTS):
        raise InputError(f"stage must be 1, 2 or None for the last one; got {stage!r}")
    config = read_run_config(run)
    tokenizer, pretrained = read_tokenizers(run, config)
    stages = [stage] if stage else sorted(STAGE_WEIGHTS, reverse=True)
    weights = [run / STAGE_WEIGHTS[each] for each in stages if (run / STAGE_WEIGHTS[each]).is_file()]
    if not weights:
        wanted = " or ".join(STAGE_WEIGHTS[each] for each in stages)
        raise InputError(f"run {run}: no trained weights ({wanted}) in it: finish its training with tools/train.py")
    towers = build_towers(config, tokenizer, pretrained)
    load_weights(towers, weights[0])
    return towers


def load_weights(towers: Towers, path: Path) -> None:
    """Reads weights into towers; `InputError` if the file is damaged or is of other towers."""
    try:
        towers.load_weights(path)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"weights {path}: damaged, or of a model with other channels or sizes: {reason}") from error


def save_weights(towers: Towers, path: Path) -> None:
    """Writes the weights of both towers, whole or not at all."""
    with atomic_write(path) as aside:
        towers.save_weights(aside)
