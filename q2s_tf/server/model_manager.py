"""The served models and their versions, from a folder or from model configs.

As in TensorFlow Serving, a model has a ``model_version_policy`` (the newest version, the newest N, all, or those
listed) and ``version_labels``, and a new version is loaded before the old one is unloaded. If a version fails to load,
the next one that the policy allows is loaded instead. If there is none, or all versions were removed from disk, the
loaded ones stay. Each model is loaded in its own thread. At start, a label may name a version that does not exist yet;
requests with the label fail until it does. A reload with such a label is refused.
"""

import gc
import logging
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.apis.model_pb2 import ModelSpec

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
    changing: threading.Lock = field(default_factory=threading.Lock)  # held while versions are loaded
    loader: threading.Thread = field(default_factory=threading.Thread)  # the last one

    def refresh(self) -> bool:
        """Serves the versions on disk that the policy selects; True if they are others than before.

        A version that fails to load is tried again only when its files change.
        """
        with self.changing:
            previous = self.loaded
            try:
                on_disk = versions_in(Path(self.config.base_path))
            except OSError as error:
                log.warning("could not look for new versions of %s: %s", self.config.name, error)
                return False
            self.statuses = {v: status for v, status in self.statuses.items() if v in on_disk or v in previous}
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

    def version(self, spec: ModelSpec) -> int | None:
        """The version that a request names by number or by label; None if it names neither."""
        if spec.HasField("version_label"):
            labels = self.config.version_labels
            if spec.version_label not in labels:
                known = ", ".join(sorted(labels)) or "none"
                message = f'model "{spec.name}" has no version label "{spec.version_label}"; its labels: {known}'
                raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
            return labels[spec.version_label]
        return spec.version.value if spec.HasField("version") else None

    def problem(self) -> str | None:
        """Why it cannot be served as its config requires; None if it can."""
        name = self.config.name
        if not select_versions(self.config, self.loaded)[0]:
            errors = (f"version {v}: {s.status.error_message}" for v, s in self.statuses.items() if _error(s))
            reason = "; ".join(errors) or f"its policy selects none of the versions in {self.config.base_path}"
            return f'model "{name}" has no version to serve: {reason}'
        for label, version in self.config.version_labels.items():
            if version not in self.loaded:
                loaded = f"which is not loaded; loaded: {_numbers(self.loaded)}"
                return f'label "{label}" of model "{name}" names version {version}, {loaded}'
        return None

    def _load(self, version: int, folder: Path) -> Servable | None:
        files = _file_states(folder)
        if self.refused.get(version) == files:
            return None
        name = self.config.name
        self._set_status(version, ModelVersionStatus.LOADING)
        start = time.monotonic()
        try:
            for path, mode, *_ in files:  # TensorFlow would wait for a pipe forever
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
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
        status.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if error else 0
        status.status.error_message = error
        self.statuses = {**self.statuses, version: status}


class ModelManager:
    """All served models: `refresh` and `reload` change them while the other methods answer requests.

    Methods that take a `ModelSpec` raise `ServingError`: NOT_FOUND if there is no such model or version, and, as in
    TensorFlow Serving, INVALID_ARGUMENT for an unknown label.
    """

    def __init__(self, source: Path | Iterable[ModelConfig], on_change: Callable[[], None] = lambda: None) -> None:
        """Of all models in a folder, also those added later, or of configs; loads nothing, see `refresh`.

        Calls ``on_change`` after other versions are served than before.
        """
        self._folder = source if isinstance(source, Path) else None
        configs = () if isinstance(source, Path) else source
        self._models = {config.name: ServedModel(config) for config in configs}
        self._on_change = on_change
        self._changing, self._reloading = threading.Lock(), threading.Lock()

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

    def reload(self, configs: list[ModelConfig]) -> None:
        """Replaces the models, after every one of them has a loaded version and every label names a loaded version.

        Afterwards models that are added to the folder of `__init__` are ignored.

        Raises:
            ServingError: FAILED_PRECONDITION if a model has no version, a label names none, or another reload runs;
                nothing changes then.
        """
        problem: str | None = "another reload runs"
        if self._reloading.acquire(blocking=False):
            try:
                models = {config.name: self._with_config(config) for config in configs}
                for model in models.values():
                    model.refresh()
                problem = next(filter(None, (model.problem() for model in models.values())), None)
                if problem is None:
                    self._models, self._folder = models, None
                    self._changed()
            finally:
                self._reloading.release()
        if problem:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f"{problem}; the old config stays")

    def close(self) -> None:
        """Closes all models. Running requests fail."""
        for model in self._models.values():
            for servable in model.loaded.values():
                servable.close()

    def find(self, spec: ModelSpec) -> Servable:
        """The loaded version that a request names by number or by label, otherwise the newest."""
        model = self._model(spec)
        loaded = model.loaded
        if not loaded:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{spec.name}" has no version loaded; see its status')
        version = model.version(spec)
        servable = loaded.get(max(loaded) if version is None else version)
        if servable is None:
            label = f' (label "{spec.version_label}")' if spec.version_label else ""
            message = f'model "{spec.name}" has no version {version}{label} loaded; served versions: {_numbers(loaded)}'
            raise ServingError(grpc.StatusCode.NOT_FOUND, message)
        return servable

    def statuses(self, spec: ModelSpec) -> list[ModelVersionStatus]:
        """The states of a model's versions, newest first, or that of the version that the request names."""
        model = self._model(spec)
        version, statuses = model.version(spec), model.statuses
        if version is None:
            return [status for _, status in sorted(statuses.items(), reverse=True)]
        if version not in statuses:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{spec.name}" has no version {version}')
        return [statuses[version]]

    def signature_names(self, model: str) -> list[str]:
        """The signatures of a model's newest version; empty if the model is not loaded."""
        loaded = self._models[model].loaded if model in self._models else {}
        return list(loaded[max(loaded)].signatures) if loaded else []

    def serving(self) -> dict[str, list[int]]:
        """The served versions of each model, newest last."""
        return {name: sorted(model.loaded) for name, model in self._models.items()}

    def refused(self) -> dict[str, list[int]]:
        """The versions of each model that are on disk and failed to load, newest last."""
        return {name: sorted(filter(lambda v: _error(m.statuses[v]), m.statuses)) for name, m in self._models.items()}

    def _model(self, spec: ModelSpec) -> ServedModel:
        if not spec.name:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "model_spec.name is empty; name the model")
        model = self._models.get(spec.name)
        if model is None:
            message = f'there is no model "{spec.name}"; the models are {", ".join(self._models)}'
            raise ServingError(grpc.StatusCode.NOT_FOUND, message)
        return model

    def _with_config(self, config: ModelConfig) -> ServedModel:
        """A model with this config, and with the loaded versions if its folder is served already."""
        model = self._models.get(config.name)
        if model is not None and model.config.base_path == config.base_path:
            return replace(model, config=config)
        return ServedModel(config)

    def _refresh(self, model: ServedModel) -> None:
        if model.refresh():
            self._changed()

    def _changed(self) -> None:
        # Cycles hold the graph of a replaced version, and requests produce so little garbage that the collector would
        # run only after days. The session, which holds the weights, needs no collector.
        with self._changing:
            gc.collect()
            self._on_change()


def _error(status: ModelVersionStatus) -> str:
    return status.status.error_message


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"


def _file_states(folder: Path) -> FileStates:
    """Kind, size and times of every file of a version.

    Tools that copy files preserve the time of the last change of the content. That of the inode cannot be set.
    """
    states = []
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):  # a file may be removed meanwhile
            state = path.stat()
            states.append((path, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return states
