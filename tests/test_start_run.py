"""A run that starts from another: the same ranking before its first epoch, and channels that are added to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_market import TinyMarket
from tiny_presets import make_bert

import q2s_tf
from q2s_tf.config import FORMAT, Config
from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, build_towers, fill_encoders, fill_from_start

TITLES = ["red sofa", "Blue LAMP", "красный диван", "qqq 猫", ""]
TEXT = {"kind": "text", "encoder": "own", "max_tokens": 8}
TRIGRAMS = {"kind": "trigrams", "buckets": 500}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preset") / "bert"
    make_bert(folder)
    return folder


def text_config(preset: Path, **tables: Any) -> Config:
    """Both towers read one text with a pretrained encoder."""
    encoder = {"preset": str(preset), "num_layers": 1, "pooling": "mean", "dropout": 0.0}
    channels = {
        "query_text": {"tower": "query", "input": "query", **TEXT},
        "title_text": {"tower": "document", "input": "title", **TEXT},
    }
    return Config.model_validate(
        {
            "dimension": 16,
            "tokenizer": {"vocabulary_size": 200},
            "evaluation": {"relevant_at": 2},
            "encoders": {"own": encoder},
            "channels": channels,
            "stage1": {"max_epochs": 1, "batch_size": 16, "text_learning_rate": 1e-3},
            "stage2": {"max_epochs": 0},
            **tables,
        }
    )


def with_trigrams(config: Config, start: Path, **changes: Any) -> Config:
    """The config of a run that starts from another, with 3-grams in both towers and the encoder fixed."""
    tables = config.model_dump(mode="json", exclude_unset=True)
    tables["channels"] |= {
        "query_trigrams": {"tower": "query", "input": "query", **TRIGRAMS},
        "title_trigrams": {"tower": "document", "input": "title", **TRIGRAMS},
    }
    tables["encoders"]["own"]["trainable"] = False
    tables["stage1"] |= {"learning_rate": 1e-2, "max_epochs": 2}
    return Config.model_validate({**tables, "start": str(start), **changes})


@pytest.fixture(scope="module")
def market_text_run(market: TinyMarket, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the text alone."""
    run = tmp_path_factory.mktemp("text") / "run"
    fit(text_config(preset), market, run)
    return run


def fit(config: Config, market: TinyMarket, run: Path, **options: Any) -> Towers:
    tables = {"documents": market.documents, "positives": market.positives, "validation": market.judgements}
    return q2s_tf.train(config, **tables, out=run, **options)


def cosines(towers: Towers, market: TinyMarket) -> np.ndarray:
    documents = towers.encode_documents(pa.Table.from_pylist(market.document_rows))
    return towers.encode_queries(TITLES) @ documents.T


def validation_values(run: Path) -> list[float]:
    return [json.loads(line)["val_roc_auc"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_added_channels_are_trained_beside_the_channels_of_the_start(
    market: TinyMarket, preset: Path, market_text_run: Path, tmp_path: Path
) -> None:
    """Epoch 0 ranks as the run that it starts from; the encoder keeps its weights; the run needs no preset."""
    start = q2s_tf.load(market_text_run)
    config = with_trigrams(text_config(preset / "is_not_read"), market_text_run)
    stage1 = config.stage1.model_copy(update={"learning_rate": 3.0})
    too_fast = config.model_copy(update={"stage1": stage1, "dimension": 24})  # 16 in the start
    same = fit(too_fast, market, tmp_path / "same")
    values = validation_values(tmp_path / "same")
    assert values[0] == max(values), "the best epoch is the beginning"
    np.testing.assert_allclose(cosines(same, market), cosines(start, market), atol=1e-5)
    trained = fit(config, market, tmp_path / "trained")
    values = validation_values(tmp_path / "trained")
    assert max(values[1:]) > values[0]
    for towers in (same, trained):
        for given, weight in zip(start.text_encoders["own"].weights, towers.text_encoders["own"].weights, strict=True):
            np.testing.assert_array_equal(weight, given)
    weights = trained.document.predict(trained.document.as_inputs(TITLES), verbose=0)["channel_weights"]
    assert 0 < weights[0, trained.document.channel_names.index("title_trigrams")] < 1
    np.testing.assert_allclose(cosines(q2s_tf.load(tmp_path / "trained"), market), cosines(trained, market), atol=1e-6)


def test_a_run_can_go_on_from_a_run_with_the_same_channels(
    market: TinyMarket, run: Path, towers: Towers, tmp_path: Path
) -> None:
    """Both towers of the default channels, encoders from scratch and categories: retraining of a run."""
    again = read_config(market.config, [f"start={run}", "stage2.max_epochs=0", "seed=6"])
    rates = {"learning_rate": 1e-12, "text_learning_rate": 1e-12}
    again = again.model_copy(update={"stage1": again.stage1.model_copy(update=rates)})
    second = fit(again, market, tmp_path / "second")
    np.testing.assert_allclose(cosines(second, market), cosines(towers, market), atol=1e-5)
    assert (tmp_path / "second/tokenizer.model").read_bytes() == (run / "tokenizer.model").read_bytes()
    more = {**again.channels, "title": again.channels["title_trigrams"]}
    with pytest.raises(InputError, match="'title'. can be added only to a tower with a pretrained encoder"):
        fit(again.model_copy(update={"channels": more}), market, tmp_path / "third")


def test_a_run_is_resumed_without_its_start(
    market: TinyMarket, preset: Path, market_text_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(market_text_run, tmp_path / "start")
    config = with_trigrams(text_config(preset), tmp_path / "start")
    fit(config, market, tmp_path / "run")
    shutil.rmtree(tmp_path / "start")
    longer = config.model_copy(update={"stage1": config.stage1.model_copy(update={"max_epochs": 3})})
    fit(longer, market, tmp_path / "run", resume=True)
    assert len(validation_values(tmp_path / "run")) == 4


def test_what_does_not_fit_the_start_is_refused(
    market: TinyMarket, preset: Path, market_text_run: Path, tmp_path: Path
) -> None:
    config, run = text_config(preset, start=str(market_text_run)), tmp_path / "run"
    other_text = {**config.model_dump(mode="json", exclude_unset=True)["channels"]}
    other_text["title_text"] = {**other_text["title_text"], "max_tokens": 9}
    longer = {**with_trigrams(config, market_text_run).model_dump(mode="json", exclude_unset=True)["channels"]}
    longer["description_text"] = {"tower": "document", "input": "description", **TEXT, "max_tokens": 9}
    scratch = {name: each for name, each in other_text.items() if name == "query_text"}
    scratch["title"] = {"tower": "document", "input": "title", **TRIGRAMS}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"start": str(tmp_path / "none")}, {}, "run .*none: not a run directory"),
        ({"dimension": 12}, {}, "its dimension is 16, and that of the config only 12: raise it"),
        ({"channels": other_text}, {}, "no channel 'title_text', or one with other settings"),
        ({"channels": scratch}, {}, "no channel 'title_text', or one with other settings"),
        ({"channels": longer}, {}, "encoder 'own' reads at most 8 tokens there"),
        ({}, {"tokenizer": market_text_run / "tokenizer.model"}, "tokenizer .*: a run with a start uses that of"),
        ({}, {"positives": None, "validation": None}, "start .*: is where a training begins: give --positives"),
    ]
    for changes, options, message in cases:
        changed = Config.model_validate({**config.model_dump(mode="json", exclude_unset=True), **changes})
        tables = {"documents": market.documents, "positives": market.positives, "validation": market.judgements}
        with pytest.raises(InputError, match=message):
            q2s_tf.train(changed, **{**tables, **options}, out=run)
        assert not run.exists()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_missing_text_leaves_the_other_channels(preset: Path, tmp_path: Path, policy: str) -> None:
    """The vectors of texts have unit length here; that of a missing one may be 0."""
    tables = with_trigrams(text_config(preset), tmp_path).model_dump(mode="json", exclude_unset=True)
    tables["channels"]["title_trigrams"]["input"] = "description"
    config, tokenizers = fill_encoders(Config.model_validate(tables))
    towers = build_towers(config, tokenizers, dtype=policy)
    documents = {"title": ["red sofa", None, "red sofa"], "description": ["red", "red", None]}
    embeddings = towers.encode_documents(documents)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)
    table = towers.document.predict(towers.document.as_inputs(documents), verbose=0)["channel_weights"]
    np.testing.assert_array_equal(table[1:], [[0, 1], [1, 0]])


def test_the_shipped_config_fits_a_run_of_own_data(tmp_path: Path) -> None:
    configs = Path(q2s_tf.__file__).parents[1] / "configs"
    first, text = read_config(configs / "own_data.toml"), (configs / "own_data.toml").read_text(encoding="utf-8")
    (tmp_path / "config.toml").write_text(f"format = {FORMAT}\n{text}", encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(b"tokenizer")
    config, _ = fill_from_start(read_config(configs / "own_data_trigrams.toml", [f"start={tmp_path}"]))
    assert config.channels.keys() - first.channels.keys() == {"query_trigrams", "title_trigrams"}
    assert config.stage1.batch_size == first.stage1.batch_size
