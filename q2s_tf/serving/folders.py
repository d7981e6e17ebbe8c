"""The layout of servables on disk, ``<models>/<model>/<version>/``, read without TensorFlow."""

import json
from pathlib import Path

from q2s_tf.errors import InputError

MANIFEST_FILE = Path("assets.extra", "manifest.json")


def models_in(folder: Path) -> list[Path]:
    """List the model folders that hold a version.

    Raises:
        InputError: There is no such folder, or no model in it.
    """
    if not folder.is_dir():
        raise InputError(f"models folder {folder} does not exist; export a run with q2s export")
    models = [child for child in sorted(folder.iterdir()) if child.is_dir() and versions_in(child)]
    if not models:
        raise InputError(f"models folder {folder} holds no <model>/<version>/; export a run with q2s export")
    return models


def versions_in(model: Path) -> dict[int, Path]:
    """List the version folders of a model by version; folders with other names are ignored."""
    children = list(model.iterdir()) if model.is_dir() else []  # a model may be removed while it is served
    return {
        int(child.name): child
        for child in children
        if child.name.isascii() and child.name.isdigit() and int(child.name) < 1 << 63 and child.is_dir()
    }


def channel_names(models: Path, tower: str, version: int) -> list[str] | None:
    """Read the names of a tower's channels in the order of ``channel_weights``; None if the export does not exist.

    Raises:
        InputError: The manifest of the export cannot be read.
    """
    path = models / tower / str(version) / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["channels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"manifest {path} holds no list of channels; export again with q2s export") from error
