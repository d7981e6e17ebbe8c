"""One export, asked in every way there is: Keras, and gRPC from a server on a real port."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_market import TinyMarket

from q2s_tf.models import Towers, encode
from q2s_tf.server.server import Server
from q2s_tf.serving.client import Client

QUERIES = ["red sofa", "ЛАМПА", "赤い ソファ", "أزرق", "", "👩‍🔬\x00", "x" * 5_000]
COUNTRIES = ["US", "", "JP", "AE", "", "nowhere", "US"]


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Client]:
    with Server(models, port=0) as server, Client(server.address) as client:
        yield client


def test_query_vectors_over_grpc_are_those_of_keras(client: Client, towers: Towers) -> None:
    answer = client.embed_query(QUERIES, COUNTRIES)
    expected = encode(towers.query, {"query": QUERIES, "country": COUNTRIES})
    np.testing.assert_allclose(answer.embedding, expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(answer.channel_weights, expected["channel_weights"], atol=1e-5)


def test_document_vectors_over_grpc_are_those_of_keras(client: Client, towers: Towers, market: TinyMarket) -> None:
    rows = market.document_rows[:9]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "document_id"}
    expected = encode(towers.document, columns)["embedding"]
    images = np.zeros((len(rows), 3, 8), np.float32)
    for padded, vectors in zip(images, columns["image_embeddings"], strict=True):
        padded[: len(vectors or [])] = vectors or np.zeros((0, 8))
    answer = client.embed_document(
        columns["title"],
        [text or "" for text in columns["description"]],
        columns["language"],
        [text or "" for text in columns["country"]],
        images,
    )
    np.testing.assert_allclose(answer.embedding, expected, atol=1e-5)


def test_what_is_retrieved_over_grpc_is_a_sort_of_keras_cosines(
    client: Client, towers: Towers, market: TinyMarket
) -> None:
    rows = market.document_rows
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "document_id"}
    queries = encode(towers.query, {"query": QUERIES[:4], "country": COUNTRIES[:4]})["embedding"]
    scores = queries @ encode(towers.document, columns)["embedding"].T
    found = client.retrieve(QUERIES[:4], COUNTRIES[:4], k=10, lexical_weight=0)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :10], atol=1e-5)
    place = {row["document_id"]: number for number, row in enumerate(rows)}
    for row, ids in enumerate(found.document_ids):
        np.testing.assert_allclose([scores[row, place[name]] for name in ids], found.scores[row], atol=1e-5)
        assert len(set(ids)) == 10
