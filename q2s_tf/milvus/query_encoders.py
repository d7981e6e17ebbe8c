"""Query embeddings for a collection: by a served query tower, or by a run in this process.

A collection is searched with the query tower of its run, which its hashes tell, not with the newest one: while the
collection of a new run is published, the towers of both runs may be served.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import grpc

from q2s_tf.errors import InputError
from q2s_tf.models import Towers, encode, hash_towers
from q2s_tf.serving.client import Client
from q2s_tf.serving.folders import MANIFEST_FILE, channel_names, versions_in
from q2s_tf.serving.request_values import Texts, to_texts
from q2s_tf.serving.search_client import Embeddings
from q2s_tf.serving.serving_error import ServingError


class QueryEncoder(Protocol):
    """Embeds queries by the query tower with given hashes."""

    @property
    def channel_names(self) -> list[str] | None:
        """The channels in the order of the weights, of the last tower that was used; None if they are not known."""

    def embed(self, queries: Texts, countries: Texts, hashes: Mapping[str, str]) -> Embeddings:
        """Embed B queries.

        Raises:
            InputError: There is no query tower with these hashes.
            ServingError: The server of the tower does not answer.
        """


class ServedQueryTower:
    """A query tower on TensorFlow Serving or on the embedded server.

    Args:
        client: A client of the server.
        models: The folder of the exports, whose manifests hold the hashes of each version.
    """

    def __init__(self, client: Client, models: Path):
        self.client, self.models = client, models
        self.channel_names: list[str] | None = None
        self._versions: dict[frozenset[tuple[str, str]], int] = {}

    def embed(self, queries: Texts, countries: Texts, hashes: Mapping[str, str]) -> Embeddings:
        """Embed B queries; see `QueryEncoder`."""
        key = frozenset(hashes.items())
        known = self._versions.get(key)
        candidates = list(dict.fromkeys([*([] if known is None else [known]), *self._find_versions(hashes)]))
        for version in candidates:
            try:
                embeddings = self.client.embed_query(queries, countries, version)
            except ServingError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                continue
            if known != version:
                self._versions[key] = version
                self.channel_names = channel_names(self.models, "query_tower", version)
            return embeddings
        where = f"serve one of its versions {', '.join(map(str, candidates))}" if candidates else "export that run"
        raise InputError(
            f"--models {self.models}: the server at {self.client.target} has no query tower of the run of the "
            f"collection (weights_sha256 {hashes['weights_sha256'][:12]}…); {where}, or publish the catalogue again"
        )

    def _find_versions(self, hashes: Mapping[str, str]) -> list[int]:
        """The exported versions with these hashes, newest first."""
        found = []
        for version, folder in sorted(versions_in(self.models / "query_tower").items(), reverse=True):
            try:
                manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if hashes.items() <= manifest.items():
                found.append(version)
        return found


class LocalQueryTower:
    """The query tower of a run in this process.

    Args:
        towers: Of `q2s_tf.load`.
    """

    def __init__(self, towers: Towers):
        self.tower = towers.query
        self.hashes = hash_towers(towers)
        self.channel_names: list[str] | None = towers.query.channel_names

    def embed(self, queries: Texts, countries: Texts, hashes: Mapping[str, str]) -> Embeddings:
        """Embed B queries; see `QueryEncoder`. The version is 0."""
        if hashes != self.hashes:
            raise InputError(
                "the collection is of another run: its documents were embedded with other weights (weights_sha256 "
                f"{hashes['weights_sha256'][:12]}…); give that run, or publish the embeddings of this one"
            )
        texts = to_texts("queries", queries)
        rows = {"query": texts, "country": to_texts("countries", countries, len(texts))}
        outputs = encode(self.tower, {name: rows[name] for name in self.tower.input})
        return Embeddings(outputs["embedding"], outputs["channel_weights"], 0)
