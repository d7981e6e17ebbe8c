"""Asks saved models and runs in a process that did not make them, the only way to see what was really written down.

A job is `(loader, folder, name, inputs)`:

* `("tf2", folder, signature, inputs)` goes through `tf.saved_model.load`;
* `("session", folder, signature, inputs)` through `tf.compat.v1.saved_model.loader`, as TF Serving does;
* `("towers", run, tower, inputs)` through `q2s_tf.load` and `q2s_tf.models.encode`;
* `("ops", folder, "", {})` gives the ops of all saved models below a folder, each with the library that has it:
  "tensorflow", "text" (TF Text) or "unknown". It has to be the first job, while TF Text is not imported.
"""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import preloaded

Job = tuple[str, Path, str, dict[str, Any]]


def answers(jobs: list[Job], folder: Path) -> list[dict[str, np.ndarray]]:
    """The outputs of each job by name, all from one new process; `folder` takes the two files of the exchange."""
    questions, results = folder / "jobs.pickle", folder / "answers.pickle"
    questions.write_bytes(pickle.dumps(jobs))
    # The towers and the servables must not need what TensorFlow Recommenders needs.
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = preloaded.run([__file__, questions, results], env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads(results.read_bytes())


def _answer(loader: str, folder: Path, name: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    if loader == "towers":
        import q2s_tf
        from q2s_tf.models import encode

        return encode(getattr(q2s_tf.load(folder), name), inputs)
    if loader == "ops":
        return _libraries_of_ops(folder)
    return {"tf2": _through_tf2, "session": _through_session}[loader](folder, name, inputs)


def _through_tf2(folder: Path, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the ops, which a stock server has linked)

    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    outputs = tf.saved_model.load(str(folder)).signatures[signature](**tensors)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _through_session(folder: Path, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        definition = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder)).signature_def[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        return session.run({name: tensor.name for name, tensor in definition.outputs.items()}, feeds)


def _libraries_of_ops(folder: Path) -> dict[str, np.ndarray]:
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    ops: set[str] = set()
    for path in folder.rglob("saved_model.pb"):
        (graph,) = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
        functions = graph.graph_def.library.function
        nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
        ops |= {node.op for node in nodes} - {function.signature.name for function in functions}
    assert "tensorflow_text" not in sys.modules
    libraries = {op: "tensorflow" for op in ops if op_def_registry.get(op)}
    import tensorflow_text  # noqa: F401

    libraries |= {op: "text" for op in ops if op not in libraries and op_def_registry.get(op)}
    return {"op": np.array(sorted(ops)), "library": np.array([libraries.get(op, "unknown") for op in sorted(ops)])}


if __name__ == "__main__":
    asked = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[2]).write_bytes(pickle.dumps([_answer(*job) for job in asked]))
