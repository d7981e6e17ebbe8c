"""Small saved models with the signatures of the servables, for the tests of server and client.

They need no training: the vector of a query is a row of a table, chosen by a hash of the text. `scores` computes the
expected results from the same table in NumPy.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from q2s_tf.serving.client import Client

DIM = 8
IMAGE_DIM = 4
IDS = [f"d{number}" for number in range(30)]
STRINGS = tf.TensorSpec([None], tf.string)
SCALAR = tf.TensorSpec([], tf.int32)
NUMBER = tf.TensorSpec([], tf.float32)
LEXICAL = 0.5
"""The lexical score of every document."""


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


DOCUMENTS = _unit(np.random.default_rng(5).normal(size=(len(IDS), DIM)))


class Tower(tf.Module):
    """A query tower: a row of a table, chosen by a hash of query and country; ``turn`` rotates the rows."""

    def __init__(self, turn: int = 0) -> None:
        super().__init__()
        self.rows = tf.Variable(np.roll(_unit(np.random.default_rng(7).normal(size=(64, DIM))), turn, axis=1))

    def embed(self, query: tf.Tensor, country: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.rows, tf.strings.to_hash_bucket_fast(query + "|" + country, 64))

    @tf.function(input_signature=[STRINGS, STRINGS])
    def __call__(self, query: tf.Tensor, country: tf.Tensor) -> dict[str, tf.Tensor]:
        embedding = self.embed(query, country)
        return {"embedding": embedding, "channel_weights": tf.nn.softmax(embedding[:, :3])}


class DocumentTower(tf.Module):
    """A document tower: the lengths of the texts and the sum of the image embeddings of each document."""

    @tf.function(input_signature=[STRINGS] * 4 + [tf.TensorSpec([None, None, IMAGE_DIM], tf.float32)])
    def __call__(
        self,
        title: tf.Tensor,
        description: tf.Tensor,
        language: tf.Tensor,
        country: tf.Tensor,
        image_embeddings: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        texts = tf.stack([title, description, language, country], axis=1)
        lengths = tf.cast(tf.strings.length(texts), tf.float32)
        return {"embedding": lengths, "channel_weights": tf.reduce_sum(image_embeddings, axis=1)}


class TextLengthTower(tf.Module):
    """A tower with one text input, whose embedding is the length of the text."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.embed = tf.function(self._embed, input_signature=[tf.TensorSpec([None], tf.string, key)])

    def _embed(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.cast(tf.strings.length(text), tf.float32)[:, None]
        return {"embedding": length, "channel_weights": tf.ones_like(length)}


class Retriever(tf.Module):
    """The query tower with an exact index of `DOCUMENTS`, and the weight of the lexical score by default."""

    def __init__(self, lexical_weight: float = 0.0) -> None:
        super().__init__()
        self.lexical_weight = lexical_weight
        self.tower = Tower()
        self.documents = tf.Variable(DOCUMENTS)
        self.ids = tf.constant(IDS)

    def search(
        self, embedding: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, min_score: tf.Tensor, lexical_weight: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        lexical_weight = tf.where(lexical_weight < 0, self.lexical_weight, lexical_weight)
        cosines = tf.matmul(embedding, self.documents, transpose_b=True)
        best = tf.math.top_k(cosines + lexical_weight * LEXICAL, tf.minimum(k, len(IDS)))
        mask = (best.values >= min_score) & (effort >= 0)
        return {
            "document_id": tf.where(mask, tf.gather(self.ids, best.indices), ""),
            "score": tf.where(mask, best.values, -1.0),
            "embedding_score": tf.where(mask, best.values - lexical_weight * LEXICAL, -1.0),
            "lexical_score": tf.where(mask, LEXICAL, 0.0),
        }

    @tf.function(input_signature=[STRINGS, STRINGS])
    def top(self, query: tf.Tensor, country: tf.Tensor) -> dict[str, tf.Tensor]:
        results = self.search(self.tower.embed(query, country), 10, 20, -1.0, -1.0)
        return {name: results[name] for name in ("document_id", "score")}

    @tf.function(input_signature=[STRINGS, STRINGS, SCALAR, SCALAR, NUMBER, NUMBER])
    def retrieve(
        self,
        query: tf.Tensor,
        country: tf.Tensor,
        k: tf.Tensor,
        effort: tf.Tensor,
        min_score: tf.Tensor,
        lexical_weight: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        return self.search(self.tower.embed(query, country), k, effort, min_score, lexical_weight)

    @tf.function(input_signature=[tf.TensorSpec([None, DIM]), SCALAR, SCALAR, NUMBER])
    def by_embedding(
        self, embedding: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, min_score: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return self.search(embedding, k, effort, min_score, 0.0)

    @tf.function(input_signature=[])
    def index(self) -> dict[str, tf.Tensor]:
        return {"partitions": tf.constant(8), "default_effort": tf.constant(4)}


def save_query_tower(folder: Path, turn: int = 0) -> None:
    """A version of the query tower in ``folder``."""
    tower = Tower(turn)
    tf.saved_model.save(tower, str(folder), signatures={"serving_default": tower.__call__})


def save_lean_towers(models: Path) -> None:
    """Version 1 of both towers, with a query or a title as the only input."""
    for name, key in (("query_tower", "query"), ("document_tower", "title")):
        tower = TextLengthTower(key)
        tf.saved_model.save(tower, str(models / name / "1"), signatures={"serving_default": tower.embed})


def save_all(models: Path, lexical_weight: float = 0.0) -> None:
    """Version 1 of the three servables in ``models``, the query tower with a warm-up file."""
    save_query_tower(models / "query_tower" / "1")
    write_warmup(models / "query_tower" / "1", {"query": ["warm"], "country": ["US"]})
    documents = DocumentTower()
    signatures = {"serving_default": documents.__call__}
    tf.saved_model.save(documents, str(models / "document_tower" / "1"), signatures=signatures)
    retriever = Retriever(lexical_weight)
    signatures = {
        "serving_default": retriever.top,
        "retrieve": retriever.retrieve,
        "by_embedding": retriever.by_embedding,
        "index": retriever.index,
    }
    tf.saved_model.save(retriever, str(models / "retriever" / "1"), signatures=signatures)


def write_warmup(version: Path, inputs: dict[str, list]) -> None:
    """A warm-up file with one Predict request."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = version.parent.name
    for key, values in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())


def wait_for(client: Client, model: str, version: int) -> None:
    """Requests the status until this version is the only one that is served; the test's time limit is the deadline."""
    while [status.version for status in client.status(model) if status.state == "AVAILABLE"] != [version]:
        pass


def scores(embedding: np.ndarray) -> list[tuple[str, float]]:
    """Every document with its cosine to one query vector, best first."""
    cosines = DOCUMENTS @ embedding
    return [(IDS[index], float(cosines[index])) for index in np.argsort(-cosines)]
