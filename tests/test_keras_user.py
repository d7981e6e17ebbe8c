"""The saved towers as a Keras user meets them: `load_model` in another process, without a run directory.

This process saves them under several dtype policies, and the processes of `keras_user.py` work with the files.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import preloaded
import pytest
import tensorflow as tf
from tiny_market import TinyMarket, filled_config, market_tokenizer, random_towers

from q2s_tf.config import IMAGES
from q2s_tf.models import encode

SIDES = {"float32": ("query", "document"), "mixed_float16": ("document",), "mixed_bfloat16": ("query",)}
"""The towers that are saved under each policy; the layers are tested under all of them."""
POLICIES = ["float32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixed_float16", "mixed_bfloat16"))]
SCRIPT = Path(__file__).with_name("keras_user.py")


class Saved(NamedTuple):
    """Towers under one policy."""

    folder: Path
    outputs: dict[str, dict[str, np.ndarray]]
    """By tower, of the process that saved it."""

    def facts(self) -> dict[str, dict[str, Any]]:
        """The results of the user's process by tower."""
        return json.loads((self.folder / "facts.json").read_text())


@pytest.fixture(scope="module", params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(policy: str, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The towers that this process saved, after a Keras user has worked with the files in another process."""
    inputs = ("title", "description", "language", "country", IMAGES)
    data = {
        "query": {"query": ["red sofa", "", "ソファ", "x\0y"] * 3, "country": ["US", "", "JP", "ZZ"] * 3},
        "document": {name: [row[name] for row in market.document_rows[:12]] for name in inputs},
    }
    config, tokenizer = filled_config(market), market_tokenizer(market)
    folder, outputs = tmp_path_factory.mktemp(policy), {}
    towers = random_towers(config, tokenizer, dtype=policy)
    for side in SIDES[policy]:
        tower, columns = getattr(towers, side), data[side]
        arrays = {name: np.array([text or "" for text in columns[name]], object) for name in columns if name != IMAGES}
        inputs = tower.as_inputs(columns)
        arrays |= {name: inputs[name].numpy() for name in {IMAGES} & set(inputs)}
        np.savez(folder / f"{side}.npz", **arrays)
        outputs[side] = tower.predict(inputs, verbose=0)
        tower.save(folder / f"{side}.keras")
    done = preloaded.run([SCRIPT, folder], timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return Saved(folder, outputs)


@pytest.fixture
def facts(saved: Saved) -> dict[str, dict[str, Any]]:
    return saved.facts()


def test_loaded_towers_give_the_vectors_of_the_process_that_saved_them(policy: str, saved: Saved) -> None:
    for side, outputs in saved.outputs.items():
        loaded = np.load(saved.folder / f"{side}-loaded.npz")
        for name, values in outputs.items():
            if policy == "float32":
                np.testing.assert_array_equal(loaded[name], values)
            else:
                np.testing.assert_allclose(loaded[name], values, atol=1e-6)


def test_towers_keep_their_type_and_policy_and_give_float32(policy: str, facts: dict[str, dict[str, Any]]) -> None:
    for fact in facts.values():
        assert (fact["type"], fact["policy"]) == ("Tower", policy)
        assert fact["output_dtypes"] == fact["weight_dtypes"] == ["float32"]
        assert fact["config"]
        assert fact["from_config"]


def test_predict_takes_arrays_tensors_and_datasets(policy: str, facts: dict[str, dict[str, Any]]) -> None:
    tolerance = 1e-6 if policy == "float32" else 2e-2  # another batch size may round otherwise
    for fact in facts.values():
        assert fact["arrays"] == 0
        assert fact["dataset"] <= tolerance
        assert fact["call"] <= tolerance


def test_the_summary_lists_channels_and_preprocessing(facts: dict[str, dict[str, Any]]) -> None:
    names = {
        "query": ("normalised", "query_trigrams_ids", "TextEncoder", "AttentionFusion", "Total params"),
        "document": ("VectorSet", "DeepSets", "TrigramEmbedding", "CategoryIds"),
    }
    for side, fact in facts.items():
        assert all(name in fact["summary"] for name in names[side])


def test_fit_and_evaluate_train_a_tower(facts: dict[str, dict[str, Any]], saved: Saved) -> None:
    for side, fact in facts.items():
        assert np.isfinite(fact["loss"]).all()
        before, after = fact["evaluate"]
        assert after < before
        assert list((saved.folder / f"{side}-tensorboard").rglob("events.out.tfevents.*"))


def test_a_fitted_tower_is_saved_with_its_weights(facts: dict[str, dict[str, Any]]) -> None:
    for fact in facts.values():
        assert fact["reloaded"] == 0
        assert fact["compiled"]


def test_a_fitted_tower_is_the_same_in_another_process(policy: str, saved: Saved) -> None:
    """The process of the user has fitted and saved it; this one loads it."""
    for side, outputs in saved.outputs.items():
        fitted = np.load(saved.folder / f"{side}-fitted.npz")
        tower = keras.saving.load_model(saved.folder / f"{side}-fitted.keras")
        tensors = {
            name: tf.constant(value) for name, value in np.load(saved.folder / f"{side}.npz", allow_pickle=True).items()
        }
        reloaded = tower.predict(tensors, verbose=0)
        for name, values in outputs.items():
            np.testing.assert_allclose(reloaded[name], fitted[name], atol=0 if policy == "float32" else 1e-6)
            assert np.abs(fitted[name] - values).max() > 1e-3, "fit has changed the tower"


def test_the_exported_signature_gives_the_outputs(policy: str, facts: dict[str, dict[str, Any]]) -> None:
    for fact in facts.values():
        assert fact["exported"] <= (1e-6 if policy == "float32" else 2e-2)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stays_near_float32(policy: str, market: TinyMarket) -> None:
    config, tokenizer = filled_config(market), market_tokenizer(market)
    queries = {"query": ["red sofa", "ソファ", ""], "country": ["US", None, "JP"]}
    exact, mixed = (
        encode(random_towers(config, tokenizer, dtype=dtype).query, queries) for dtype in ("float32", policy)
    )
    for name, values in exact.items():
        np.testing.assert_allclose(mixed[name], values, atol=0.05)
