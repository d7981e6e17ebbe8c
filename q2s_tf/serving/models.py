"""The models of one folder: which versions are there, which one is served, and what became of the others."""

import gc
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from q2s_tf.serving.errors import ServingError
from q2s_tf.serving.folders import models_in, versions_in
from q2s_tf.serving.servable import Servable

log = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus.State


class VersionState(NamedTuple):
    """Where a version is in its life, and why it was refused, if it was."""

    state: int
    error: str = ""


class Model:
    """One model: a folder with one folder of an integer's name for each version.

    Attributes:
        name: The folder's name.
        serving: The version that answers, None while there is none.
        states: What became of each version seen on disk.
    """

    def __init__(self, folder: Path) -> None:
        """Loads nothing yet: see `refresh`."""
        self.name = folder.name
        self.serving: Servable | None = None
        self.states: dict[int, VersionState] = {}
        self._folder = folder
        self._refused: dict[int, tuple[int, ...]] = {}

    def refresh(self) -> bool:
        """Serves the newest version on disk that loads; True if that is another one than before.

        The new version is loaded and warmed up before it takes over. A version that does not load is refused and
        tried again only when its files change, so a copy that was still under way gets its chance. If no version is
        on disk any more, the loaded one stays.
        """
        versions = versions_in(self._folder)
        self.states = {v: state for v, state in self.states.items() if v in versions or self._serves(v)}
        for version in sorted(versions, reverse=True):
            if self._serves(version):
                return False
            content = _fingerprint(versions[version])
            if self._refused.get(version) != content and self._load(version, versions[version]):
                return True
            self._refused[version] = content
        return False

    def _serves(self, version: int) -> bool:
        return self.serving is not None and self.serving.version == version

    def _load(self, version: int, folder: Path) -> bool:
        self.states[version] = VersionState(State.LOADING)
        start = time.monotonic()
        try:
            servable = Servable(self.name, version, folder)
        except Exception as error:  # whatever is wrong with a version must not stop the server
            reason = " ".join(str(error).split()) or type(error).__name__
            self.states[version] = VersionState(State.END, reason)
            keeps = f"version {self.serving.version} goes on serving" if self.serving else "no version is loaded yet"
            log.error("refused %s %d: %s; %s", self.name, version, reason, keeps)
            return False
        if self.serving is not None:
            self.states[self.serving.version] = VersionState(State.END)
        self.states[version] = VersionState(State.AVAILABLE)
        self.serving = servable
        log.info("loaded %s %d in %.1f s", self.name, version, time.monotonic() - start)
        return True


class Models:
    """Every model under one folder; `refresh` follows the disk, the other methods answer requests meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Loads nothing yet: see `refresh`."""
        self._folder = folder
        self._models: dict[str, Model] = {}

    def refresh(self) -> None:
        """Looks once for new models and new versions, and loads them.

        Raises:
            InputError: There is no model in the folder.
        """
        for folder in models_in(self._folder):
            if folder.name not in self._models:
                self._models[folder.name] = Model(folder)
        if any([model.refresh() for model in self._models.values()]):
            # The graph of a replaced version is held by cycles, and requests make so little garbage that the collector
            # would come round to it only after days; its session, with the weights, needs no collector.
            gc.collect()

    def find(self, name: str, version: int | None = None) -> Servable:
        """The loaded version of a model.

        Raises:
            ServingError: NOT_FOUND if the model, or the version asked for, is not loaded.
        """
        model = self._model(name)
        servable = model.serving
        if servable is None:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{name}" has no version loaded; see its status')
        if version is not None and version != servable.version:
            raise ServingError(
                grpc.StatusCode.NOT_FOUND,
                f'model "{name}" has no version {version} loaded; version {servable.version} is served',
            )
        return servable

    def states(self, name: str, version: int | None = None) -> dict[int, VersionState]:
        """What became of a model's versions, newest first, or of the one asked for.

        Raises:
            ServingError: NOT_FOUND if there is no such model or version.
        """
        states = dict(sorted(self._model(name).states.items(), reverse=True))
        if version is None:
            return states
        if version not in states:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{name}" has no version {version}')
        return {version: states[version]}

    def serving(self) -> dict[str, int | None]:
        """The version that each model serves, None for a model without one."""
        return {name: model.serving.version if model.serving else None for name, model in self._models.items()}

    def _model(self, name: str) -> Model:
        if not name:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "model_spec.name is empty; name the model")
        if name not in self._models:
            known = ", ".join(self._models)
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'there is no model "{name}"; there are {known}')
        return self._models[name]


def _fingerprint(folder: Path) -> tuple[int, ...]:
    stats = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it has just gone
            stats.append(path.lstat())
    return len(stats), sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
