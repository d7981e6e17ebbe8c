"""q2s_tf: Que2Search for TensorFlow, from a marketplace's search log to semantic retrieval on TF Serving.

`train`, `evaluate`, `embed` (`q2s_tf.embedding.embed.embed`) and `export` (`q2s_tf.serving.export.export`) are what the
commands of these names call. `load` returns the trained towers of a run directory, `Client` queries a server. `import
q2s_tf` does not import TensorFlow; each function imports what it needs. After `import q2s_tf`,
`keras.saving.load_model` finds the layers of q2s_tf.
"""

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wrapt

from q2s_tf.errors import InputError

if TYPE_CHECKING:
    from q2s_tf.config import Config
    from q2s_tf.embedding.embed import embed
    from q2s_tf.evaluation.results import RunEvaluation
    from q2s_tf.models import Towers
    from q2s_tf.serving.client import Client
    from q2s_tf.serving.export import export

__version__ = "0.3.0"
__all__ = ["Client", "InputError", "embed", "evaluate", "export", "load", "train"]

CONFIGS = Path(__file__).parent / "configs"
"""Folder of the configs that come with q2s_tf."""

KERAS_CLASSES = (
    "AttentionFusion",
    "CategoryEmbedding",
    "CategoryIds",
    "DeepSets",
    "TextEncoder",
    "TextNormalization",
    "TokenIds",
    "Tower",
    "Towers",
    "TrigramEmbedding",
    "TrigramIds",
    "VectorSet",
)
"""The classes that `q2s_tf.models` registers with Keras under the package "q2s_tf"."""


def load(run: str | PathLike[str], stage: int | None = None) -> "Towers":
    """Loads the trained towers of a run directory: see `q2s_tf.models.load`."""
    from q2s_tf.models import load

    return load(Path(run), stage)


def train(
    config: "Config | str | PathLike[str]",
    *,
    documents: str | PathLike[str],
    out: str | PathLike[str],
    positives: str | PathLike[str] | None = None,
    validation: str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    tokenizer: str | PathLike[str] | None = None,
    resume: bool = False,
) -> "Towers":
    """Trains both towers and writes a run directory, `out`: see `q2s_tf.training.train`.

    `config` is a TOML file, the name of a shipped config (`marketplace`), or a `Config`; `overrides` are `key=value`
    for keys of a config that is read from a file: `stage1.batch_size=512`.
    """
    from q2s_tf.config import Config
    from q2s_tf.config_files import read_config

    if not isinstance(config, Config):
        config = read_config(find_config(config), overrides)
    elif overrides:
        raise InputError("overrides: only for a config that is read from a file: change the Config instead")
    from q2s_tf.training import train

    return train(config, Path(documents), _path(positives), _path(validation), Path(out), _path(tokenizer), resume)


def evaluate(
    run: str | PathLike[str],
    *,
    documents: str | PathLike[str],
    judgements: str | PathLike[str],
    out: str | PathLike[str],
    later: str | PathLike[str] | None = None,
    positives: str | PathLike[str] | None = None,
    models: str | PathLike[str] | None = None,
    relevant_at: float | None = None,
    recall_relevant_at: float | None = None,
    stage: int | None = None,
    encoder: str | None = None,
    uri: str | None = None,
    token: str = "",
    collection: str = "products",
) -> "RunEvaluation":
    """Evaluates a run and writes the metrics: see `q2s_tf.evaluation.evaluate.evaluate`.

    It is compared with BM25 and with an unmodified `encoder`: a preset, "none", or by default that of the run's config
    or all-MiniLM-L6-v2. `models` are exports, or `uri` is the address of a Milvus, whose index is measured too.
    `results["advice"]` of the result says which system to deploy.
    `q2s_tf.report.report.write_report` makes the HTML report from the result.
    """
    from q2s_tf.evaluation.evaluate import evaluate
    from q2s_tf.evaluation.exported_index import MilvusAddress

    milvus = None if uri is None else MilvusAddress(uri, token, collection)
    return evaluate(
        Path(run), Path(documents), Path(judgements), Path(out), relevant_at, recall_relevant_at, stage,
        _path(later), _path(positives), _path(models), encoder, milvus,
    )  # fmt: skip


def find_config(config: str | PathLike[str]) -> Path:
    """The file of a config: the path itself if it is a file, else the shipped config of that name, if there is one."""
    path = Path(config)
    shipped = CONFIGS / f"{path.name}.toml"
    return shipped if str(path) == path.name and shipped.is_file() and not path.is_file() else path


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def __getattr__(name: str) -> Any:
    """Imports `Client`, `embed` and `export` when they are first used; they need TensorFlow."""
    modules = {"Client": "q2s_tf.serving.client", "embed": "q2s_tf.embedding.embed", "export": "q2s_tf.serving.export"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(modules[name]), name)


class _Unloaded:
    """Stands for a registered class in Keras until `q2s_tf.models` is imported, which registers the class itself."""

    def __init__(self, name: str):
        self.name = name

    def from_config(self, config: dict[str, Any]) -> Any:
        import_module("q2s_tf.models")
        classes = import_module("keras").saving.get_custom_objects()
        return classes[self.name].from_config(config)


@wrapt.when_imported("keras")
def _register(keras: Any) -> None:
    """Makes the classes known to `keras.saving.load_model`, now or when Keras is imported, without importing them."""
    for name in KERAS_CLASSES:
        keras.saving.get_custom_objects().setdefault(f"q2s_tf>{name}", _Unloaded(f"q2s_tf>{name}"))
