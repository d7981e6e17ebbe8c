"""A catalogue of 60 documents in four scripts, its positives and judgements: small enough to train on in seconds."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from q2s_tf.config import Config
from q2s_tf.config_files import read_config
from q2s_tf.models import Towers, build_towers, encode
from q2s_tf.text import train_tokenizer

IMAGE_DIM = 8
PRODUCTS = {
    "en": ["sofa", "bicycle", "lamp", "phone"],
    "ru": ["диван", "велосипед", "лампа", "телефон"],
    "ja": ["ソファ", "自転車", "ランプ", "電話"],
    "ar": ["أريكة", "دراجة", "مصباح"],
}
COLOURS = {
    "en": ["red", "green", "blue", "black"],
    "ru": ["красный", "зелёный", "синий", "чёрный"],
    "ja": ["赤い", "緑", "青い", "黒い"],
    "ar": ["أحمر", "أخضر", "أزرق", "أسود"],
}
COUNTRIES = {"en": "US", "ru": None, "ja": "JP", "ar": "AE"}

CONFIG = """
seed = 5
dimension = 16

[tokenizer]
vocabulary_size = 200

[evaluation]
relevant_at = 2

[encoders.query]
num_layers = 1
num_heads = 2
hidden_dim = 16
intermediate_dim = 32

[encoders.document]
num_layers = 1
num_heads = 2
hidden_dim = 16
intermediate_dim = 32

[channels.query_trigrams]
tower = "query"
kind = "trigrams"
input = "query"
buckets = 500
max_trigrams = 24

[channels.query_country]
tower = "query"
kind = "categorical"
input = "country"

[channels.query_text]
tower = "query"
kind = "text"
input = "query"
encoder = "query"
max_tokens = 8

[channels.title_text]
tower = "document"
kind = "text"
input = "title"
encoder = "document"
max_tokens = 8

[channels.description_text]
tower = "document"
kind = "text"
input = "description"
encoder = "document"
max_tokens = 10

[channels.title_trigrams]
tower = "document"
kind = "trigrams"
input = "title"
buckets = 500
max_trigrams = 24

[channels.images]
tower = "document"
kind = "vectors"
input = "image_embeddings"
modality = "images"
dimension = 8
max_vectors = 3
hidden_dim = 12

[channels.language]
tower = "document"
kind = "categorical"
input = "language"

[stage1]
max_epochs = 1
batch_size = 16
learning_rate = 5e-3
text_learning_rate = 1e-3

[stage2]
max_epochs = 1
batch_size = 16
learning_rate = 1e-3
text_learning_rate = 1e-3
margin = 0.2
unconverged = true
"""
"""Every kind of channel, two that share an encoder, and nothing larger than it has to be."""

LEAN_CONFIG = """
seed = 5
dimension = 16
evaluation.relevant_at = 2
tokenizer.vocabulary_size = 200
channels.query_trigrams = { tower = "query", kind = "trigrams", input = "query", buckets = 2000 }
channels.title_trigrams = { tower = "document", kind = "trigrams", input = "title", buckets = 2000 }
stage1 = { max_epochs = 4, batch_size = 16, learning_rate = 0.02 }
stage2 = { max_epochs = 0 }
"""
"""3-grams alone, for tests that need no text encoder."""

TEXT_OVERRIDES = [
    'channels.query_text={ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }',
    "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 16, intermediate_dim = 32, dropout = 0.2 }",
]
"""Gives the lean config a text encoder, and with it dropout."""


@dataclass
class TinyMarket:
    """The files of the data contract, and the rows that are in them."""

    folder: Path
    config: Path
    lean_config: Path
    documents: Path
    positives: Path
    judgements: Path
    document_rows: list[dict[str, Any]]
    positive_rows: list[dict[str, Any]]
    judgement_rows: list[dict[str, Any]]


def make_market(folder: Path) -> TinyMarket:
    """Writes the files of a tiny market into a folder."""
    documents = make_documents()
    positives, judgements = make_positives(documents), make_judgements(documents)
    market = TinyMarket(
        folder=folder,
        config=folder / "tiny.toml",
        lean_config=folder / "lean.toml",
        documents=folder / "documents.parquet",
        positives=folder / "positives.parquet",
        judgements=folder / "judgements.parquet",
        document_rows=documents,
        positive_rows=positives,
        judgement_rows=judgements,
    )
    market.config.write_text(CONFIG, encoding="utf-8")
    market.lean_config.write_text(LEAN_CONFIG, encoding="utf-8")
    for path, rows in ((market.documents, documents), (market.positives, positives), (market.judgements, judgements)):
        pq.write_table(pa.Table.from_pylist(rows), path)
    return market


def make_documents() -> list[dict[str, Any]]:
    """15 products in 4 colours; every fifth has no description, every fourth no image, Russian ones no country."""
    generator = np.random.default_rng(3)
    looks = {product: generator.normal(size=IMAGE_DIM) for products in PRODUCTS.values() for product in products}
    rows: list[dict[str, Any]] = []
    for language, products in PRODUCTS.items():
        for product in products:
            for colour in COLOURS[language]:
                number = len(rows)
                images = looks[product] + generator.normal(scale=0.1, size=(1 + number % 3, IMAGE_DIM))
                rows.append(
                    {
                        "document_id": f"d{number:02}",
                        "title": f"{colour} {product}",
                        "description": None if number % 5 == 0 else f"{product} {colour} {product}",
                        "language": language,
                        "country": COUNTRIES[language],
                        "image_embeddings": None if number % 4 == 0 else images.astype(np.float32).tolist(),
                    }
                )
    return rows


def make_positives(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each document's title, its title in capitals, and its product alone as queries that were answered by it."""
    rows = []
    for number, document in enumerate(documents):
        title, country = document["title"], document["country"]
        for query, weight in ((title, 4.0), (title.upper(), None), (title.split()[-1], None)):
            rows.append(
                {
                    "query": query,
                    "country": country,
                    "document_id": document["document_id"],
                    "timestamp": datetime.datetime(2024, 3, 1, number % 24, tzinfo=datetime.UTC),
                    "weight": weight,
                }
            )
    return rows


def make_judgements(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every other document's title: it is exact (2), the same product in another colour is 1, two others are 0."""
    rows = []
    for number in range(0, len(documents), 2):
        query = documents[number]
        other_colour = number + (1 if number % 4 == 0 else -1)
        others = [(number + 20) % len(documents), (number + 33) % len(documents)]
        for place, grade in ((number, 2.0), (other_colour, 1.0), (others[0], 0.0), (others[1], 0.0)):
            document_id = documents[place]["document_id"]
            judged = {"query": query["title"], "country": query["country"], "document_id": document_id}
            rows.append({**judged, "relevance": grade})
    return rows


def judged_auc(towers: Towers, market: TinyMarket) -> float:
    """ROC AUC by one prediction for each judged pair, from the raw rows."""
    documents = {row["document_id"]: row for row in market.document_rows}
    pairs = [(row, documents[row["document_id"]]) for row in market.judgement_rows]
    query, document = (
        encode(tower, {name: [pair[side][name] for pair in pairs] for name in tower.input})["embedding"]
        for side, tower in enumerate((towers.query, towers.document))
    )
    scores = (query * document).sum(axis=1)
    return float(roc_auc_score([row["relevance"] >= 2 for row, _ in pairs], scores))


def filled_config(market: TinyMarket, *overrides: str) -> Config:
    """The config of every kind of channel, with the values of its categories, as training fills them in."""
    config = read_config(market.config, list(overrides))
    values = {"query_country": ("ae", "jp", "us"), "language": ("ar", "en", "ja", "ru")}
    filled = {name: config.channels[name].model_copy(update={"values": known}) for name, known in values.items()}
    return config.model_copy(update={"channels": {**config.channels, **filled}})


def market_tokenizer(market: TinyMarket) -> bytes:
    """A tokenizer of the titles."""
    return train_tokenizer([row["title"].lower() for row in market.document_rows] * 4, 200)


def random_towers(config: Config, tokenizer: bytes, dtype: str | None = None, seed: int = 1) -> Towers:
    """Towers that need no training: their weights are so random that every channel changes the embedding."""
    towers = build_towers(config, dict.fromkeys(config.encoders, tokenizer), dtype)
    generator = np.random.default_rng(seed)
    for weight in towers.weights:
        weight.assign(weight.numpy() + generator.normal(scale=0.1, size=weight.shape))
    return towers
