"""Pretrained text encoders: from a preset to a run that needs it no more.

Everything is read through KerasHub, from its own presets and from Hugging Face folders alike. BERT becomes the
`TextEncoder` that XLM-R is: the embedding of its segment 0, which is every token's here, is added to those of the
places, and its other constants (the form of GELU, the ε of the normalisations) go into the config.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import keras_hub
import numpy as np
from keras_hub.models import BertBackbone, BertTokenizer, XLMRobertaBackbone, XLMRobertaTokenizer

from q2s_tf.config import Config, Encoder, Pretrained
from q2s_tf.errors import InputError
from q2s_tf.layers import TextEncoder
from q2s_tf.models import Towers

REMOTE = ("kaggle://", "hf://", "modelscope://", "gs://")
"""Beginnings of presets that KerasHub downloads."""
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_approximate", "gelu_pytorch_tanh": "gelu_approximate"}
"""Hugging Face's names of activations and ours."""


GEOMETRY = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim")
"""What a config has of a preset's geometry, under the names that KerasHub has too."""


class Preset(NamedTuple):
    """A pretrained model: KerasHub's backbone, its tokenizer's file, and what the config keeps of it."""

    backbone: Any
    tokenizer: bytes
    pretrained: Pretrained


def read_preset(preset: str, weights: bool = True) -> Preset:
    """Reads a preset of the BERT or the XLM-R family.

    Args:
        preset: a keras_hub preset (a name or a folder) or a local Hugging Face folder with `model.safetensors`.
        weights: False leaves the backbone with random ones, which is quicker.

    Raises:
        InputError: no such preset, of another family, or one that cannot be read.
    """
    known = {*BertBackbone.presets, *XLMRobertaBackbone.presets}
    if not Path(preset).is_dir() and preset not in known and not preset.startswith(REMOTE):
        raise InputError(
            f"preset {preset}: there is no such folder, nor a keras_hub preset of BERT or XLM-R of this name: "
            f"give a folder or one of {', '.join(sorted(known))}"
        )
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset, load_weights=weights)
        if not isinstance(backbone, BertBackbone | XLMRobertaBackbone):
            raise InputError(f"preset {preset}: is a {type(backbone).__name__}: give one of the BERT or XLM-R family")
        tokenizer = _read_tokenizer(preset)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"preset {preset}: a Hugging Face folder needs safetensors: pip install safetensors"
        ) from error
    except Exception as error:  # KerasHub, its downloads and its readers of files raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"preset {preset}: cannot be read by keras_hub: {reason}") from error
    if not isinstance(tokenizer, BertTokenizer | XLMRobertaTokenizer):
        raise InputError(
            f"preset {preset}: its tokenizer is a {type(tokenizer).__name__}: give one with WordPiece or SentencePiece"
        )
    return Preset(backbone, _file_of(tokenizer), _constants(preset, backbone, tokenizer))


def _read_tokenizer(preset: str) -> Any:
    """A preset's tokenizer. Newer Hugging Face folders of BERT have no `vocab.txt`, only what it would say."""
    path = Path(preset) / "tokenizer.json"  # KerasHub has a file of this name too
    if path.is_file() and not path.with_name("vocab.txt").is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("model", {}).get("type") == "WordPiece":
            places = settings["model"]["vocab"]
            lowercase = bool((settings.get("normalizer") or {}).get("lowercase"))
            return BertTokenizer(sorted(places, key=places.__getitem__), lowercase=lowercase)
    return keras_hub.models.Tokenizer.from_preset(preset)


def fill_encoders(config: Config) -> tuple[Config, dict[str, bytes]]:
    """The config with the geometry and the constants of its presets filled in, and their tokenizers by encoder.

    Raises:
        InputError: as `read_preset`, or a preset with fewer layers, or places for fewer tokens, than are asked for.
    """
    encoders, tokenizers = dict(config.encoders), {}
    longest = config.longest_texts("query") | config.longest_texts("document")
    for name, encoder in config.encoders.items():
        if encoder.preset is None:
            continue
        preset = read_preset(encoder.preset, weights=False)
        backbone, tokenizers[name] = preset.backbone, preset.tokenizer
        if "num_layers" in encoder.model_fields_set and encoder.num_layers > backbone.num_layers:
            raise InputError(
                f"encoders.{name}.num_layers is {encoder.num_layers}, but preset {encoder.preset} has only "
                f"{backbone.num_layers} layers"
            )
        if longest.get(name, 0) > backbone.max_sequence_length:
            raise InputError(
                f"encoders.{name}: a channel has max_tokens = {longest[name]}, but preset {encoder.preset} reads only "
                f"{backbone.max_sequence_length}"
            )
        encoders[name] = filled(encoder, model_encoder(preset))
    return config.model_copy(update={"encoders": encoders}), tokenizers


def model_encoder(preset: Preset) -> Encoder:
    """A preset's own geometry and constants, as a config has them."""
    geometry = {key: getattr(preset.backbone, key) for key in GEOMETRY}
    return Encoder(**geometry, pretrained=preset.pretrained)


def filled(asked: Encoder, model: Encoder) -> Encoder:
    """An encoder as it was asked for, with what is left open taken from that of a model."""
    opened = {*GEOMETRY, "pretrained"} - ({"num_layers"} & asked.model_fields_set)
    return asked.model_copy(update={key: getattr(model, key) for key in opened})


def load_pretrained(towers: Towers) -> None:
    """Copies the weights of the presets that a config names into the text encoders of its towers."""
    for tower in (towers.query, towers.document):
        for name in towers.config.longest_texts(tower.name.removesuffix("_tower")):
            preset = towers.config.encoders[name].preset
            if preset is not None:
                padding = tower.preprocessor.pretrained[name].padding
                copy_weights(read_preset(preset).backbone, tower.encoder.get_layer(f"{name}_text_encoder"), padding)


def copy_weights(backbone: Any, encoder: TextEncoder, padding: int) -> None:
    """Copies a backbone's weights, of as many layers, pieces and places as the encoder has.

    Args:
        backbone: of KerasHub, BERT or XLM-R.
        encoder: with the same widths.
        padding: id of padding in the backbone's vocabulary, which changes places with 0.
    """
    own = encoder.backbone
    pieces, places = own.vocabulary_size, encoder.max_tokens
    if pieces > backbone.vocabulary_size:
        raise InputError(
            f"preset: its tokenizer has {pieces} pieces, but its model {backbone.vocabulary_size}: give one that has "
            "both of one model"
        )
    table = backbone.token_embedding.embeddings.numpy()[:pieces].copy()
    table[[0, padding]] = table[[padding, 0]]
    own.token_embedding.embeddings.assign(table)
    own.embeddings.position_embedding.position_embeddings.assign(_places(backbone)[:places])
    pairs = [(own.embeddings_layer_norm, backbone.embeddings_layer_norm)]
    pairs += list(zip(own.transformer_layers, backbone.transformer_layers, strict=False))
    for to, source in pairs:
        for weight, value in zip(to.weights, source.weights, strict=True):
            weight.assign(value)


def _places(backbone: Any) -> np.ndarray:
    """The embeddings of the places `[L, H]`, with what every token of a single text adds."""
    if isinstance(backbone, BertBackbone):
        places, segments = backbone.position_embedding.position_embeddings, backbone.segment_embedding.embeddings
        return places.numpy() + segments.numpy()[0]
    return backbone.embeddings.position_embedding.position_embeddings.numpy()


def _file_of(tokenizer: Any) -> bytes:
    """What its tokenizer is made from again: pieces by line, or a SentencePiece model."""
    if isinstance(tokenizer, BertTokenizer):
        return "".join(f"{piece}\n" for piece in tokenizer.get_vocabulary()).encode()
    return bytes(tokenizer.proto)


def _constants(preset: str, backbone: Any, tokenizer: Any) -> Pretrained:
    """What the config must keep. A Hugging Face folder has its own word on the activation and on ε, KerasHub's does."""
    bert = isinstance(backbone, BertBackbone)
    activation, epsilon = ("gelu_approximate", 1e-12) if bert else ("gelu", 1e-5)
    path = Path(preset) / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "model_type" in settings:
        named = settings.get("hidden_act", "gelu")
        if named not in ACTIVATIONS:
            raise InputError(f"preset {preset}: its activation is {named!r}: known are {', '.join(ACTIVATIONS)}")
        activation, epsilon = ACTIVATIONS[named], settings.get("layer_norm_eps", epsilon)
    pieces = isinstance(tokenizer, BertTokenizer)
    return Pretrained(
        tokenizer="wordpiece" if pieces else "sentencepiece",
        lowercase=pieces and bool(tokenizer.lowercase),
        activation=activation,  # type: ignore[arg-type]
        epsilon=epsilon,
    )
