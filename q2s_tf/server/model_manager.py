"""The served models and their versions, from a folder or from model configs.

As in TensorFlow Serving, a model has a ``model_version_policy`` (the newest version, the newest N, all, or those
listed) and ``version_labels``, and a new version is loaded before the old one is unloaded. If a version fails to load,
the next one that the policy allows is loaded instead. If there is none, or all versions were removed from disk, the
loaded ones stay. Each model is loaded in its own thread. A label may name a version that does not exist yet; requests
with the label fail until it does.
"""

import gc
import logging
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from grpc import StatusCode
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.apis.model_pb2 import ModelSpec

from q2s_tf.server import server_metrics
from q2s_tf.server.servable import Servable
from q2s_tf.server.server_config import ModelConfig, select_versions
from q2s_tf.serving.folders import models_in, versions_in
from q2s_tf.serving.serving_error import ServingError

log = logging.getLogger(__name__)

FileStates = list[tuple[Path, int, int, int, int]]


@dataclass
class ServedModel:
    """One model: a folder with a folder for each version, named by its number.

    The dictionaries are replaced, not modified, so readers need no lock.
    """

    config: ModelConfig
    loaded: dict[int, Servable] = field(default_factory=dict)  # the versions that are served
    statuses: dict[int, ModelVersionStatus] = field(default_factory=dict)  # of the versions seen on disk
    refused: dict[int, FileStates] = field(default_factory=dict)  # the files of versions that failed to load
    loader: threading.Thread = field(default_factory=threading.Thread)  # the last thread that called `refresh`

    def refresh(self) -> bool:
        """Serves the versions on disk that the policy selects; True if they are others than before.

        A version that fails to load is tried again only when its files change.
        """
        previous = self.loaded
        try:
            on_disk = versions_in(Path(self.config.base_path))
        except OSError as error:
            log.warning("could not look for new versions of %s: %s", self.config.name, error)
            return False
        removed = self.statuses.keys() - on_disk.keys() - previous.keys()
        for version in removed:
            server_metrics.version_refused.labels(self.config.name, str(version)).set(0)
        self.statuses = {version: status for version, status in self.statuses.items() if version not in removed}
        selected: dict[int, Servable] = {}
        allowed, count = select_versions(self.config, on_disk)
        for version in allowed:
            servable = self.loaded.get(version) or self._load(version, on_disk[version])
            if servable is not None:
                selected[version] = servable
            if len(selected) == count:
                break
        if selected:
            self.loaded = selected
            for version in previous.keys() - selected.keys():
                self._set_status(version, ModelVersionStatus.END)
        return self.loaded.keys() != previous.keys()

    def _load(self, version: int, folder: Path) -> Servable | None:
        files = _file_states(folder)
        if self.refused.get(version) == files:
            return None
        name = self.config.name
        self._set_status(version, ModelVersionStatus.LOADING)
        start = time.monotonic()
        try:
            for path, mode, *_ in files:
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # TensorFlow would wait for a pipe forever
                    raise ValueError(f"{path} is neither a file nor a folder")
            servable = Servable(name, version, folder)
        except Exception as error:  # a broken version must not stop the server
            reason = " ".join(str(error).split()) or type(error).__name__
            if "too many open files" not in reason.lower():  # that passes
                self.refused = {**self.refused, version: files}
            self._set_status(version, ModelVersionStatus.END, reason)
            log.error("refused %s %d: %s; still served: %s", name, version, reason, _numbers(self.loaded))
            return None
        self.loaded = {**self.loaded, version: servable}
        self._set_status(version, ModelVersionStatus.AVAILABLE)
        log.info("loaded %s %d in %.1f s", name, version, time.monotonic() - start)
        return servable

    def _set_status(self, version: int, state: ModelVersionStatus.State.ValueType, error: str = "") -> None:
        status = ModelVersionStatus(version=version, state=state)
        status.status.error_code = StatusCode.UNKNOWN.value[0] if error else 0
        status.status.error_message = error
        self.statuses = {**self.statuses, version: status}
        labels = self.config.name, str(version)
        server_metrics.version_loaded.labels(*labels).set(state == ModelVersionStatus.AVAILABLE)
        server_metrics.version_refused.labels(*labels).set(bool(error))


class ModelManager:
    """All served models: `refresh` changes them while the other methods answer requests.

    Methods that take a `ModelSpec` raise `ServingError`: NOT_FOUND if there is no such model or version, and, as in
    TensorFlow Serving, INVALID_ARGUMENT for an unknown label.
    """

    def __init__(self, source: Path | Iterable[ModelConfig], on_change: Callable[[], None] = lambda: None) -> None:
        """Manages the models of a folder, later ones too, or of configs; calls ``on_change`` when others are served."""
        self._folder = source if isinstance(source, Path) else None
        configs = () if isinstance(source, Path) else source
        self._models = {config.name: ServedModel(config) for config in configs}
        self._on_change = on_change
        self._changing = threading.Lock()

    def refresh(self) -> None:
        """Begins to load new models and new versions; see `loading`.

        Raises:
            InputError: The folder has no model.
            OSError: The folder cannot be read.
        """
        for folder in models_in(self._folder) if self._folder else []:
            if folder.name not in self._models:
                config = ModelConfig(name=folder.name, base_path=str(folder), model_platform="tensorflow")
                self._models = {**self._models, folder.name: ServedModel(config)}
        for model in self._models.values():
            if not model.loader.is_alive():
                model.loader = threading.Thread(target=self._refresh, args=(model,), name="model-loader", daemon=True)
                model.loader.start()

    def loading(self, seconds: float) -> bool:
        """Waits until no model is being loaded, at most ``seconds``; whether one still is."""
        end = time.monotonic() + seconds
        loaders = [model.loader for model in self._models.values() if model.loader.is_alive()]
        for loader in loaders:
            loader.join(max(0.0, end - time.monotonic()))
        return any(loader.is_alive() for loader in loaders)

    def close(self) -> None:
        """Closes all models. Running requests fail."""
        for model in self._models.values():
            for servable in model.loaded.values():
                servable.close()

    def find(self, spec: ModelSpec) -> Servable:
        """The loaded version that a request names by number or by label, otherwise the newest."""
        model, version = self._resolve(spec)
        loaded = model.loaded
        if loaded and version is None:
            version = max(loaded)
        if version not in loaded:
            asked = "" if version is None else f" {version}"
            label = f' (label "{spec.version_label}")' if spec.version_label else ""
            message = f'model "{spec.name}" has no version{asked}{label} loaded; served versions: {_numbers(loaded)}'
            raise ServingError(StatusCode.NOT_FOUND, message)
        return loaded[version]

    def statuses(self, spec: ModelSpec) -> list[ModelVersionStatus]:
        """The states of a model's versions, newest first, or that of the version that the request names."""
        model, version = self._resolve(spec)
        if version is None:
            return [status for _, status in sorted(model.statuses.items(), reverse=True)]
        if version not in model.statuses:
            raise ServingError(StatusCode.NOT_FOUND, f'model "{spec.name}" has no version {version}')
        return [model.statuses[version]]

    def signatures(self, model: str) -> Collection[str]:
        """The names of the signatures of a model's newest version; empty if the model is not loaded."""
        loaded = self._models[model].loaded if model in self._models else {}
        return loaded[max(loaded)].signatures if loaded else ()

    def serving(self) -> dict[str, list[int]]:
        """The served versions of each model, newest last."""
        return {name: sorted(model.loaded) for name, model in self._models.items()}

    def _resolve(self, spec: ModelSpec) -> tuple[ServedModel, int | None]:
        """The model, and the version that a request names by number or by label; None if it names neither."""
        if not spec.name:
            raise ServingError(StatusCode.INVALID_ARGUMENT, "model_spec.name is empty; name the model")
        model = self._models.get(spec.name)
        if model is None:
            message = f'there is no model "{spec.name}"; the models are {", ".join(self._models)}'
            raise ServingError(StatusCode.NOT_FOUND, message)
        if not spec.HasField("version_label"):
            return model, spec.version.value if spec.HasField("version") else None
        labels = model.config.version_labels
        if spec.version_label not in labels:
            known = ", ".join(sorted(labels)) or "none"
            message = f'model "{spec.name}" has no version label "{spec.version_label}"; its labels: {known}'
            raise ServingError(StatusCode.INVALID_ARGUMENT, message)
        return model, labels[spec.version_label]

    def _refresh(self, model: ServedModel) -> None:
        if model.refresh():
            # Cycles hold the graph of a replaced version, and requests produce so little garbage that the collector
            # would run only after days. The session, which holds the weights, needs no collector.
            with self._changing:
                gc.collect()
                self._on_change()


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"


def _file_states(folder: Path) -> FileStates:
    """Kind, size and times of every file of a version; tools that copy files can set all but the time of the inode."""
    states = []
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):  # a file may be removed meanwhile
            state = path.stat()
            states.append((path, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return states
