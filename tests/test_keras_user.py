"""The saved towers as a Keras user meets them: `load_model` in another process, without a run directory.

One process saves the towers under a dtype policy, and another one does with the files what a notebook does.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_market import TinyMarket, filled_config, market_tokenizer, random_towers

from q2s_tf.models import encode

IMPORT = "q2s_tf"
"""The module whose import registers the layers of a `.keras` file."""

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]

USER = f"""
import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import {IMPORT}

folder = Path(sys.argv[1])
arrays = {{side: dict(np.load(folder / f"{{side}}.npz", allow_pickle=True)) for side in ("query", "document")}}
facts = {{}}


def close(values, expected):
    return max(float(np.abs(np.asarray(values[name]) - expected[name]).max()) for name in expected)


for side in ("query", "document"):
    tower = keras.saving.load_model(folder / f"{{side}}.keras")
    inputs = arrays[side]
    rows = len(inputs["country"])
    tensors = {{name: tf.constant(value) for name, value in inputs.items()}}
    outputs = tower.predict(tensors, verbose=0)
    np.savez(folder / f"{{side}}-loaded.npz", **outputs)
    fact = facts[side] = {{"type": type(tower).__name__, "policy": tower.policy.name}}
    fact["dtypes"] = sorted({{str(value.dtype) for value in outputs.values()}})
    fact["weights"] = sorted({{weight.dtype for weight in tower.weights}})
    fact["arrays"] = close(tower.predict(inputs, verbose=0), outputs)
    dataset = tf.data.Dataset.from_tensor_slices(tensors).batch(4)
    fact["dataset"] = close(tower.predict(dataset, verbose=0), outputs)
    fact["call"] = close(tower(tensors), outputs)

    lines = []
    tower.summary(expand_nested=True, print_fn=lambda line, **_: lines.append(line))
    fact["summary"] = "\\n".join(lines)

    again = type(tower).from_config(tower.get_config())
    fact["config"] = again.get_config() == tower.get_config() == json.loads(json.dumps(tower.get_config()))
    fact["from_config"] = [weight.shape for weight in again.weights] == [weight.shape for weight in tower.weights]

    target = np.zeros((rows, tower.output["embedding"].shape[1]), np.float32)
    target[:, 0] = 1
    examples = tf.data.Dataset.from_tensor_slices((tensors, {{"embedding": target}})).batch(8)
    tower.compile(optimizer=keras.optimizers.Adam(0.01), loss={{"embedding": "cosine_similarity"}})
    before = tower.evaluate(examples, verbose=0)
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True),
        keras.callbacks.TensorBoard(str(folder / f"{{side}}-tensorboard")),
    ]
    history = tower.fit(examples, epochs=1, callbacks=callbacks, verbose=0)
    fact["loss"] = history.history["loss"]
    fact["evaluate"] = [before, tower.evaluate(examples, verbose=0)]

    outputs = tower.predict(tensors, verbose=0)
    np.savez(folder / f"{{side}}-fitted.npz", **outputs)
    tower.save(folder / f"{{side}}-fitted.keras")
    reloaded = keras.saving.load_model(folder / f"{{side}}-fitted.keras")
    fact["reloaded"] = close(reloaded.predict(tensors, verbose=0), outputs)
    fact["compiled"] = reloaded.compiled

    tower.export(folder / f"{{side}}-exported", verbose=False)
    servable = tf.saved_model.load(folder / f"{{side}}-exported")
    signature = servable.signatures["serving_default"]
    fact["exported"] = close(signature(**tensors), outputs)
    fact["served"] = close(servable.serve(tensors), outputs)

(folder / "facts.json").write_text(json.dumps(facts))
"""

READER = f"""
import sys
from pathlib import Path

import keras
import numpy as np

import {IMPORT}

folder = Path(sys.argv[1])
for side in ("query", "document"):
    inputs = dict(np.load(folder / f"{{side}}.npz", allow_pickle=True))
    tower = keras.saving.load_model(folder / f"{{side}}-fitted.keras")
    np.savez(folder / f"{{side}}-reloaded.npz", **tower.predict(inputs, verbose=0))
"""


def run_python(script: str, folder: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning:keras.src.saving.saving_lib", "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module", params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(policy: str, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the saved towers, in which a Keras user has worked, and the outputs of the process that saved."""
    folder = tmp_path_factory.mktemp(policy)
    towers = random_towers(filled_config(market), market_tokenizer(market), dtype=policy)
    data = {
        "query": {"query": ["red sofa", "", "ソファ", "x\0y"] * 3, "country": ["US", None, "JP", "ZZ"] * 3},
        "document": {
            name: [row[name] for row in market.document_rows[:12]]
            for name in ("title", "description", "language", "country", "image_embeddings")
        },
    }
    expected = {}
    for side, columns in data.items():
        tower = getattr(towers, side)
        inputs = tower.as_inputs(columns)
        arrays = {name: np.array(columns[name], object) for name in inputs if name != "image_embeddings"}
        for array in arrays.values():
            array[array == None] = ""  # noqa: E711  (elementwise)
        if "image_embeddings" in inputs:
            arrays["image_embeddings"] = inputs["image_embeddings"].numpy()
        np.savez(folder / f"{side}.npz", **arrays)
        expected[side] = tower.predict(inputs, verbose=0)
        tower.save(folder / f"{side}.keras")
    run_python(USER, folder)
    return folder, expected


@pytest.fixture(scope="module")
def facts(saved: tuple[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return json.loads((saved[0] / "facts.json").read_text())


def test_loaded_towers_give_the_vectors_of_the_process_that_saved_them(
    policy: str, saved: tuple[Path, dict[str, Any]]
) -> None:
    folder, expected = saved
    for side, outputs in expected.items():
        loaded = np.load(folder / f"{side}-loaded.npz")
        for name, values in outputs.items():
            if policy == "float32":
                np.testing.assert_array_equal(loaded[name], values)
            else:
                np.testing.assert_allclose(loaded[name], values, atol=1e-6)


def test_towers_keep_their_type_and_policy_and_give_float32(policy: str, facts: dict[str, dict[str, Any]]) -> None:
    for fact in facts.values():
        assert (fact["type"], fact["policy"]) == ("Tower", policy)
        assert fact["dtypes"] == fact["weights"] == ["float32"]
        assert fact["config"]
        assert fact["from_config"]


def test_predict_takes_arrays_tensors_and_datasets(policy: str, facts: dict[str, dict[str, Any]]) -> None:
    tolerance = 1e-6 if policy == "float32" else 2e-2  # another batch size may round otherwise
    for fact in facts.values():
        assert fact["arrays"] == 0
        assert fact["dataset"] <= tolerance
        assert fact["call"] <= tolerance


def test_the_summary_lists_channels_and_preprocessing(facts: dict[str, dict[str, Any]]) -> None:
    for name in ("query_normalised", "query_trigrams_ids", "TextEncoder", "AttentionFusion", "Total params"):
        assert name in facts["query"]["summary"]
    for name in ("VectorSet", "DeepSets", "TrigramEmbedding", "CategoryIds"):
        assert name in facts["document"]["summary"]


def test_fit_and_evaluate_train_a_tower(facts: dict[str, dict[str, Any]], saved: tuple[Path, dict[str, Any]]) -> None:
    for side, fact in facts.items():
        assert np.isfinite(fact["loss"]).all()
        before, after = fact["evaluate"]
        assert after < before
        assert list((saved[0] / f"{side}-tensorboard").rglob("events.out.tfevents.*"))


def test_a_fitted_tower_is_saved_with_its_weights(facts: dict[str, dict[str, Any]]) -> None:
    for fact in facts.values():
        assert fact["reloaded"] == 0
        assert fact["compiled"]


def test_a_fitted_tower_is_the_same_in_a_fresh_process(policy: str, saved: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = saved
    run_python(READER, folder)
    for side, outputs in expected.items():
        fitted, reloaded = (np.load(folder / f"{side}-{name}.npz") for name in ("fitted", "reloaded"))
        for name, values in outputs.items():
            np.testing.assert_allclose(reloaded[name], fitted[name], atol=0 if policy == "float32" else 1e-6)
            assert np.abs(fitted[name] - values).max() > 1e-3, "fit has changed the tower"


def test_the_exported_signature_gives_the_outputs(policy: str, facts: dict[str, dict[str, Any]]) -> None:
    for fact in facts.values():
        assert fact["exported"] <= (1e-6 if policy == "float32" else 2e-2)
        assert fact["served"] <= (1e-6 if policy == "float32" else 2e-2)


def test_mixed_precision_stays_near_float32(policy: str, market: TinyMarket) -> None:
    config, tokenizer = filled_config(market), market_tokenizer(market)
    queries = {"query": ["red sofa", "ソファ", ""], "country": ["US", None, "JP"]}
    exact, mixed = (
        encode(random_towers(config, tokenizer, dtype=dtype).query, queries) for dtype in ("float32", policy)
    )
    for name, values in exact.items():
        np.testing.assert_allclose(mixed[name], values, atol=0.05)
