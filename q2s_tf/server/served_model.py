"""One model: which of its versions are on disk, which ones answer, and what became of the others."""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from q2s_tf.server.servable import Servable
from q2s_tf.server.server_config import ModelConfig, wanted_versions
from q2s_tf.serving.folders import versions_in
from q2s_tf.serving.serving_error import ServingError

log = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus.State


class VersionState(NamedTuple):
    """Where a version is in its life, and why it was refused, if it was."""

    state: int
    error: str = ""


class Model:
    """One model: a folder with one folder of an integer's name for each version.

    Attributes:
        config: Its name, folder, policy and labels.
        loaded: The versions that answer. A change replaces the dictionary, so that a reader needs no lock.
        states: What became of each version seen on disk, replaced likewise.
    """

    def __init__(self, config: ModelConfig, before: "Model | None" = None) -> None:
        """Loads nothing yet: see `refresh`. What ``before`` had loaded from the same folder is taken over."""
        self.config = config
        self.loaded: dict[int, Servable] = {}
        self.states: dict[int, VersionState] = {}
        self._refused: dict[int, tuple[int, ...]] = {}
        if before is not None and before.config.base_path == config.base_path:
            self.loaded, self.states, self._refused = before.loaded, before.states, dict(before._refused)

    def refresh(self) -> bool:
        """Serves the versions on disk that the policy wants and that load; True if they are others than before.

        A new version is loaded and warmed up before it answers, and the old ones answer until it does. A version that
        does not load is refused and tried again only when its files change, so a copy that was still under way gets its
        chance. If no version can be served, the loaded ones stay.

        Raises:
            OSError: The folder cannot be read.
        """
        before = self.loaded
        on_disk = versions_in(Path(self.config.base_path))
        self.states = {v: state for v, state in self.states.items() if v in on_disk or v in before}
        wanted: dict[int, Servable] = {}
        allowed, count = wanted_versions(self.config, on_disk)
        for version in allowed:
            if len(wanted) == count:
                break
            servable = self.loaded.get(version) or self._load(version, on_disk[version])
            if servable is not None:
                wanted[version] = servable
        if wanted:
            self.loaded = wanted
            gone = {version: VersionState(State.END) for version in before if version not in wanted}
            self.states = {**self.states, **gone}
        return self.loaded.keys() != before.keys()

    def find(self, version: int | None, label: str | None) -> Servable:
        """The loaded version that was asked for by number or by label, or the newest.

        Raises:
            ServingError: NOT_FOUND if it is not loaded, INVALID_ARGUMENT for an unknown label.
        """
        name, loaded = self.config.name, self.loaded
        if not loaded:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{name}" has no version loaded; see its status')
        if label is not None:
            version = self.labelled(label)
        servable = loaded.get(max(loaded) if version is None else version)
        if servable is None:
            called = f'{version}, which label "{label}" names,' if label is not None else str(version)
            served = f"version{'s' if len(loaded) > 1 else ''} {', '.join(map(str, sorted(loaded)))}"
            raise ServingError(
                grpc.StatusCode.NOT_FOUND,
                f'model "{name}" has no version {called} loaded; {served} {"are" if len(loaded) > 1 else "is"} served',
            )
        return servable

    def labelled(self, label: str) -> int:
        """The version that a label names.

        Raises:
            ServingError: INVALID_ARGUMENT, as from TensorFlow Serving, if there is no such label.
        """
        if label not in self.config.version_labels:
            known = ", ".join(sorted(self.config.version_labels)) or "none"
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f'model "{self.config.name}" has no version label "{label}"; its labels: {known}',
            )
        return self.config.version_labels[label]

    def _load(self, version: int, folder: Path) -> Servable | None:
        content = _fingerprint(folder)
        if self._refused.get(version) == content:
            return None
        name = self.config.name
        self._set(version, VersionState(State.LOADING))
        start = time.monotonic()
        try:
            servable = Servable(name, version, folder)
        except Exception as error:  # whatever is wrong with a version must not stop the server
            reason = " ".join(str(error).split()) or type(error).__name__
            self._refused[version] = content
            self._set(version, VersionState(State.END, reason))
            serving = ", ".join(map(str, sorted(self.loaded)))
            keeps = f"version {serving} goes on serving" if serving else "no version is loaded yet"
            log.error("refused %s %d: %s; %s", name, version, reason, keeps)
            return None
        self.loaded = {**self.loaded, version: servable}
        self._set(version, VersionState(State.AVAILABLE))
        log.info("loaded %s %d in %.1f s", name, version, time.monotonic() - start)
        return servable

    def _set(self, version: int, state: VersionState) -> None:
        self.states = {**self.states, version: state}


def _fingerprint(folder: Path) -> tuple[int, ...]:
    stats = []
    with suppress(FileNotFoundError):  # what a listing named has just gone
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                stats.append(path.lstat())
    return len(stats), sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
