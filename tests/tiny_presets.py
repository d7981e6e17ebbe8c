"""Tiny BERT and XLM-R presets with random weights, as keras_hub saves them, and towers that begin with a preset."""

import io
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import sentencepiece
from tiny_market import TinyMarket

from q2s_tf.config import Config
from q2s_tf.config_files import check_config, read_config
from q2s_tf.models import Towers, build_towers, fill_encoders, load_pretrained
from q2s_tf.training import train

GEOMETRY = {"num_layers": 3, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 24}
WORDS = ["sofa", "chair", "red", "lamp", "диван", "красный", "лампа", "ソファ", "أريكة", "blue", "table"]
CHARACTERS = sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyz0123456789ßéабвгд赤い電話한국.,-/'"))


def bert_vocabulary() -> list[str]:
    """Pieces of BERT, with [PAD] not at 0."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *WORDS, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    return list(dict.fromkeys(pieces))


def xlm_roberta_model() -> bytes:
    """A SentencePiece model as XLM-R's is: unknown, begin and end first, and a normalisation of its own."""
    model = io.BytesIO()
    texts = [f"{first} {second}" for first in WORDS for second in CHARACTERS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_writer=model, model_type="unigram", vocab_size=140,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def make_bert(folder: Path) -> tuple[Any, Any]:
    """Saves a BERT; returns keras_hub's backbone and tokenizer."""
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=bert_vocabulary(), lowercase=True)
    backbone = keras_hub.models.BertBackbone(vocabulary_size=len(bert_vocabulary()), **GEOMETRY)
    return _save(folder, backbone, tokenizer)


def make_xlm_roberta(folder: Path) -> tuple[Any, Any]:
    """Saves an XLM-R; returns keras_hub's backbone and tokenizer."""
    tokenizer = keras_hub.models.XLMRobertaTokenizer(proto=xlm_roberta_model())
    backbone = keras_hub.models.XLMRobertaBackbone(vocabulary_size=tokenizer.vocabulary_size(), **GEOMETRY)
    return _save(folder, backbone, tokenizer)


def _save(folder: Path, backbone: Any, tokenizer: Any) -> tuple[Any, Any]:
    generator = np.random.default_rng(7)
    for weight in backbone.weights:
        weight.assign(generator.normal(scale=0.5, size=weight.shape))
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))
    return backbone, tokenizer


MAX_TOKENS = 12


def tower_config(preset: Path, dimension: int = 8, max_tokens: int = MAX_TOKENS, **encoder: Any) -> Config:
    """A document tower of one pretrained text channel alone."""
    text = {"tower": "document", "kind": "text", "input": "title", "encoder": "own", "max_tokens": max_tokens}
    query = {"tower": "query", "kind": "trigrams", "input": "query", "buckets": 50}
    tables = {"dimension": dimension, "encoders": {"own": {"preset": str(preset), **encoder}}}
    return check_config({**tables, "channels": {"text": text, "query": query}}, "test")


def build(config: Config) -> Towers:
    towers = build_towers(*fill_encoders(config))
    load_pretrained(towers)
    return towers


def prepared(towers: Towers, texts: list[str]) -> np.ndarray:
    """The token ids of the text channel."""
    return towers.document.preprocessor(towers.document.as_inputs(texts))["text"].numpy()


SLOW_RATES = ["stage1.learning_rate=1e-12", "stage1.text_learning_rate=1e-12"]


def train_pretrained(market: TinyMarket, preset: Path, run: Path, *overrides: str, resume: bool = False) -> Towers:
    text = '{ tower = "document", kind = "text", input = "title", encoder = "own", max_tokens = 8 }'
    own = [f"channels.title_text={text}", f'encoders.own={{ preset = "{preset}", num_layers = 2, pooling = "mean" }}']
    config = read_config(market.lean_config, [*own, "stage1.max_epochs=1", *overrides])
    return train(config, market.documents, market.positives, market.judgements, run, resume=resume)
