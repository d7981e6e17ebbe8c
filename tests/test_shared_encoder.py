"""A text encoder that both towers read: one set of weights in training, in the run and in saved files."""

import json
from pathlib import Path

import keras
import numpy as np
import preloaded
import pytest
from tiny_market import TinyMarket, filled_config, market_tokenizer, random_towers

import q2s_tf
from q2s_tf.config_files import read_config
from q2s_tf.models import Towers, build_towers, read_tokenizers
from q2s_tf.training import train

SHARED = "channels.query_text.encoder=document"
QUERIES = ["red sofa", "диван", "ソファ", ""]
TITLES = ["red sofa", "blue lamp", ""]
CODE = """
import json, sys
import keras
import q2s_tf
from q2s_tf.models import Towers

models = [keras.saving.load_model(path) for path in sys.argv[3:]]
towers = models[0] if len(models) == 1 else Towers(*models)
queries, titles = json.loads(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps([towers.encode_queries(queries).tolist(), towers.encode_documents(titles).tolist()]))
"""


@pytest.fixture(scope="module")
def run(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shared") / "run"
    config = read_config(market.config, [SHARED, "stage1.max_epochs=2", "stage2.max_epochs=0"])
    train(config, market.documents, market.positives, market.judgements, run)
    return run


def encoders(towers: Towers) -> list[keras.Layer]:
    return [tower.text_encoders["document"] for tower in (towers.query, towers.document)]


def test_both_towers_have_the_same_layer_and_count_its_weights_once(market: TinyMarket) -> None:
    towers = random_towers(filled_config(market, SHARED), market_tokenizer(market))
    query, document = encoders(towers)
    assert query is document
    counts = [model.count_params() for model in (towers, towers.query, towers.document, query)]
    assert counts[0] == counts[1] + counts[2] - counts[3]


def test_training_changes_it_and_the_run_has_it_once(run: Path) -> None:
    towers = q2s_tf.load(run)
    query, document = encoders(towers)
    assert query is document
    new = build_towers(towers.config, read_tokenizers(run, towers.config))
    assert not np.allclose(encoders(new)[0].weights[0].numpy(), query.weights[0].numpy())


@pytest.mark.parametrize("whole", [True, False], ids=["both towers in one file", "a file for each tower"])
def test_saved_towers_give_the_same_vectors_in_another_process(run: Path, tmp_path: Path, whole: bool) -> None:
    towers = q2s_tf.load(run)
    saved = {"towers": towers} if whole else {"query": towers.query, "document": towers.document}
    for name, model in saved.items():
        model.save(tmp_path / f"{name}.keras")
    paths = [str(tmp_path / f"{name}.keras") for name in saved]
    done = preloaded.run(["-c", CODE, json.dumps(QUERIES), json.dumps(TITLES), *paths])
    assert done.returncode == 0, done.stderr[-3000:]
    queries, documents = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(queries, towers.encode_queries(QUERIES), atol=1e-6)
    np.testing.assert_allclose(documents, towers.encode_documents(TITLES), atol=1e-6)
