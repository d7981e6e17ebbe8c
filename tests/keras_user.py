"""What a Keras user does with saved towers, as a program: `keras_user.py FOLDER…`.

A folder has `query.keras` or `document.keras` or both, and `query.npz` and `document.npz` with their inputs. It
writes `facts.json` and files of outputs, and saves fitted towers.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import q2s_tf  # noqa: F401  (registers the layers)


def read_inputs(folder: Path, side: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{side}.npz", allow_pickle=True))


def difference(outputs: dict[str, Any], expected: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(np.asarray(outputs[name]) - expected[name]).max()) for name in expected)


def use(folder: Path, side: str) -> dict[str, Any]:
    tower = keras.saving.load_model(folder / f"{side}.keras")
    inputs = read_inputs(folder, side)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    dataset = tf.data.Dataset.from_tensor_slices(tensors).batch(4)
    outputs = tower.predict(tensors, verbose=0)
    np.savez(folder / f"{side}-loaded.npz", **outputs)
    lines: list[str] = []
    tower.summary(expand_nested=True, print_fn=lambda line, **_: lines.append(line))
    config = tower.get_config()
    rebuilt = type(tower).from_config(config)
    facts = {
        "type": type(tower).__name__,
        "policy": tower.policy.name,
        "output_dtypes": sorted({str(value.dtype) for value in outputs.values()}),
        "weight_dtypes": sorted({weight.dtype for weight in tower.weights}),
        "arrays": difference(tower.predict(inputs, verbose=0), outputs),
        "dataset": difference(tower.predict(dataset, verbose=0), outputs),
        "call": difference(tower(tensors), outputs),
        "summary": "\n".join(lines),
        "config": rebuilt.get_config() == config == json.loads(json.dumps(config)),
        "from_config": [weight.shape for weight in rebuilt.weights] == [weight.shape for weight in tower.weights],
    }

    target = np.zeros_like(outputs["embedding"])
    target[:, 0] = 1
    examples = tf.data.Dataset.from_tensor_slices((tensors, {"embedding": target})).batch(12)
    tower.compile(optimizer=keras.optimizers.Adam(0.01), loss={"embedding": "cosine_similarity"})
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True),
        keras.callbacks.TensorBoard(str(folder / f"{side}-tensorboard"), write_graph=False),
    ]
    before = tower.evaluate(examples, verbose=0)
    facts["loss"] = tower.fit(examples, epochs=1, callbacks=callbacks, verbose=0).history["loss"]
    facts["evaluate"] = [before, tower.evaluate(examples, verbose=0)]

    outputs = tower.predict(tensors, verbose=0)
    np.savez(folder / f"{side}-fitted.npz", **outputs)
    tower.save(folder / f"{side}-fitted.keras")
    reloaded = keras.saving.load_model(folder / f"{side}-fitted.keras")
    tower.export(folder / f"{side}-exported", verbose=False)
    servable = tf.saved_model.load(folder / f"{side}-exported")
    return facts | {
        "reloaded": difference(reloaded.predict(tensors, verbose=0), outputs),
        "compiled": reloaded.compiled,
        "exported": difference(servable.signatures["serving_default"](**tensors), outputs),
    }


if __name__ == "__main__":
    warnings.filterwarnings("error", category=UserWarning, module="keras.src.saving.saving_lib")
    for folder in map(Path, sys.argv[1:]):
        sides = [side for side in ("query", "document") if (folder / f"{side}.keras").is_file()]
        (folder / "facts.json").write_text(json.dumps({side: use(folder, side) for side in sides}))
