"""The models that are served, from a folder that holds them or from a config that names them.

As in TensorFlow Serving a model has a ``model_version_policy`` (the newest version, the newest N, all, or those named)
and ``version_labels``, and a new version is loaded before an old one goes. Here a version that does not load is no
reason to go without: the policy's next one is served, the loaded one goes on if there is none, and a folder that loses
all its versions goes on serving the loaded ones. A label may name a version that is not there when the server starts,
and requests for it fail until it is; a reload with such a label is refused.
"""

import gc
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import grpc

from q2s_tf.server.servable import Servable
from q2s_tf.server.served_model import Model, VersionState
from q2s_tf.server.server_config import ModelConfig, wanted_versions
from q2s_tf.serving.folders import models_in
from q2s_tf.serving.serving_error import ServingError

log = logging.getLogger(__name__)


class Models:
    """Every model that is served; `refresh` follows the disk, the other methods answer requests meanwhile."""

    def __init__(self, source: Path | Iterable[ModelConfig]) -> None:
        """Loads nothing yet: see `refresh`.

        Args:
            source: A folder all of whose models are to be served, those that come later as well, or their configs.
        """
        self._folder = source if isinstance(source, Path) else None
        self._models: dict[str, Model] = {}
        if not isinstance(source, Path):
            self._models = {config.name: Model(config) for config in source}
        self._changing = threading.Lock()

    def refresh(self) -> bool:
        """Looks once for new models and new versions, and loads them; True if other versions are served than before.

        Raises:
            InputError: There is no model in the folder.
            OSError: The folder cannot be read.
        """
        with self._changing:
            for folder in models_in(self._folder) if self._folder else []:
                if folder.name not in self._models:
                    config = ModelConfig(name=folder.name, base_path=str(folder), model_platform="tensorflow")
                    self._models = {**self._models, folder.name: Model(config)}
            changed = any([_refresh(model) for model in self._models.values()])
            if changed:
                _collect_garbage()
            return changed

    def reload(self, configs: list[ModelConfig]) -> None:
        """Serves these models instead, once each of them has a version loaded and all labels name loaded versions.

        From then on models that appear in the folder of `__init__` are not looked for any more.

        Raises:
            ServingError: FAILED_PRECONDITION if a model or a label has no version; all stays as it was.
        """
        with self._changing:
            models = {config.name: Model(config, self._models.get(config.name)) for config in configs}
            for model in models.values():
                _refresh(model)
                _check_complete(model)
            self._models, self._folder = models, None
            _collect_garbage()

    def close(self) -> None:
        """Breaks off what still runs; nothing answers after it."""
        for model in self._models.values():
            for servable in model.loaded.values():
                servable.close()

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The loaded version of a model: the newest, or the one asked for.

        Raises:
            ServingError: NOT_FOUND if the model, or the version asked for, is not loaded; INVALID_ARGUMENT for an
                unknown label.
        """
        return self._model(name).find(version, label)

    def states(self, name: str, version: int | None = None, label: str | None = None) -> dict[int, VersionState]:
        """What became of a model's versions, newest first, or of the one asked for.

        Raises:
            ServingError: NOT_FOUND if there is no such model or version; INVALID_ARGUMENT for an unknown label.
        """
        model = self._model(name)
        states = dict(sorted(model.states.items(), reverse=True))
        if label is not None:
            version = model.labelled(label)
        if version is None:
            return states
        if version not in states:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{name}" has no version {version}')
        return {version: states[version]}

    def serving(self) -> dict[str, list[int]]:
        """The versions that each model serves, newest last."""
        return {name: sorted(model.loaded) for name, model in self._models.items()}

    def refused(self) -> dict[str, list[int]]:
        """The versions of each model that are on disk and did not load."""
        return {
            name: sorted(version for version, state in model.states.items() if state.error)
            for name, model in self._models.items()
        }

    def _model(self, name: str) -> Model:
        if not name:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "model_spec.name is empty; name the model")
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models)
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'there is no model "{name}"; there are {known}')
        return model


def _refresh(model: Model) -> bool:
    """The folders change under our eyes: what becomes of one must not keep the other models from their turn."""
    try:
        return model.refresh()
    except OSError as error:
        log.warning("could not look for new versions of %s: %s", model.config.name, error)
        return False


def _check_complete(model: Model) -> None:
    name = model.config.name
    allowed, _ = wanted_versions(model.config, model.loaded)
    if not allowed:
        errors = [f"version {version}: {state.error}" for version, state in model.states.items() if state.error]
        why = "; ".join(errors) or f"{model.config.base_path} has no <version>/ that its policy wants"
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION, f'model "{name}" has no version to serve: {why}; the old config stays'
        )
    for label, version in model.config.version_labels.items():
        if version not in model.loaded:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'label "{label}" of model "{name}" names version {version}, which is not loaded; '
                f"loaded: {', '.join(map(str, sorted(model.loaded)))}; the old config stays",
            )


def _collect_garbage() -> None:
    # The graph of a replaced version is held by cycles, and requests make so little garbage that the collector would
    # come round to it only after days; its session, with the weights, needs no collector.
    gc.collect()
