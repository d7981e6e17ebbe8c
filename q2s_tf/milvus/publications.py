"""The collections of a catalogue in Milvus: one for each publication, and an alias for the one that is searched.

With the alias `products`, publication 3 is the collection `products_3`. While it is filled, its name is
`products_3_filling`. Its property `q2s_tf` holds the settings of the publication as JSON: `run`, `tokenizer_sha256`,
`weights_sha256`, `dimension`, `filters`, `lexical` (the weight of each column), `lexical_weight` and `language`.
"""

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from q2s_tf.errors import InputError
from q2s_tf.milvus.milvus_connection import engine_errors
from q2s_tf.serving.serving_error import ServingError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

PROPERTY = "q2s_tf"
FILLING = "_filling"
SETTINGS_FORMAT = 1
"""Changes when a collection of one version of q2s_tf cannot be searched by another."""
MAX_NAME = 200
"""Milvus allows 255 bytes, of which the version takes some."""


class Publication(NamedTuple):
    """The collection of a publication: its `name`, the `version` in it, and its `settings`."""

    name: str
    version: int
    settings: dict[str, Any]

    @property
    def hashes(self) -> dict[str, str]:
        """The hashes of the towers, as of `q2s_tf.models.hash_towers`."""
        return {name: self.settings[name] for name in ("tokenizer_sha256", "weights_sha256")}


def check_alias(alias: str) -> None:
    """Raise `InputError` if Milvus does not allow the name."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", alias) or len(alias) > MAX_NAME:
        raise InputError(
            f"collection {alias!r:.80}: must be letters, digits and _, without a digit first, at most {MAX_NAME}; "
            "name another one"
        )


def versions_of(client: "MilvusClient", alias: str, suffix: str = "") -> dict[int, str]:
    """The collections of complete publications by version, oldest first; with `FILLING`, of incomplete ones."""
    pattern = re.compile(rf"{alias}_(\d+){suffix}")
    with engine_errors():
        names = client.list_collections()
    return dict(sorted((int(match[1]), name) for name in names if (match := pattern.fullmatch(name))))


def find_current(client: "MilvusClient", alias: str, timeout_seconds: float | None = None) -> str | None:
    """The collection that an alias names; None if there is no such alias.

    Without a deadline, pymilvus repeats a request that Milvus does not answer for minutes.
    """
    try:
        with engine_errors():
            return client.describe_alias(alias, timeout=timeout_seconds)["collection_name"]
    except ServingError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def read_publication(client: "MilvusClient", name: str, timeout_seconds: float | None = None) -> Publication:
    """The publication in a collection.

    Raises:
        InputError: `q2s publish` of this version of q2s_tf did not make the collection.
        ServingError: NOT_FOUND if there is no such collection.
    """
    with engine_errors():
        properties = client.describe_collection(name, timeout=timeout_seconds)["properties"]
    try:
        settings = json.loads(properties[PROPERTY])
        if settings["format"] == SETTINGS_FORMAT:
            return Publication(name, int(name.rpartition("_")[2]), settings)
    except (LookupError, TypeError, ValueError):
        pass
    raise InputError(f"collection {name}: was not made by this version's q2s publish; publish the catalogue again")


def current_publication(client: "MilvusClient", alias: str, timeout_seconds: float | None = None) -> Publication:
    """The publication that an alias names.

    Raises:
        InputError: There is none.
        ServingError: Milvus does not answer.
    """
    check_alias(alias)
    name = find_current(client, alias, timeout_seconds)
    if name is None:
        raise InputError(f"collection {alias}: nothing is published under this name; publish with q2s publish")
    return read_publication(client, name, timeout_seconds)


def switch_alias(client: "MilvusClient", alias: str, name: str) -> None:
    """Load a collection, then make an alias name it, at once."""
    present = find_current(client, alias) is not None
    with engine_errors():
        client.load_collection(name)
        if present:
            client.alter_alias(name, alias)
        else:
            client.create_alias(name, alias)


def drop_older(client: "MilvusClient", alias: str, keep: int) -> None:
    """Drop all but the newest `keep` publications; the current one always stays."""
    current = find_current(client, alias)
    for name in list(versions_of(client, alias).values())[:-keep]:
        if name != current:
            with engine_errors():
                client.drop_collection(name)
