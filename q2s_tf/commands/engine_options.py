"""The options of the commands that search, and the client that they choose: a served retriever, or Milvus."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from typer import Option

from q2s_tf.errors import InputError

if TYPE_CHECKING:
    import grpc

    from q2s_tf.serving.search_client import SearchClient

Engine = Annotated[
    Literal["retriever", "milvus"], Option(help="Where to search; milvus needs the extra 'milvus' and --uri.")
]
Uri = Annotated[
    str | None, Option(help="Of Milvus: http://host:19530, or a folder of milvus-lite such as catalogue.db.")
]
Token = Annotated[str, Option(help="Of Milvus: user:password or an API key.", envvar="MILVUS_TOKEN", show_envvar=False)]
Collection = Annotated[str, Option(help="Of Milvus: the name that the catalogue is published under.")]
QueryRun = Annotated[
    Path | None, Option(help="Of Milvus: a run whose query tower embeds here. [default: the server of --target]")
]


class EngineOptions(NamedTuple):
    """The values of the options."""

    engine: str = "retriever"
    uri: str | None = None
    token: str = ""
    collection: str = "products"
    run: Path | None = None

    @property
    def milvus_uri(self) -> str | None:
        """The address of Milvus; None if another engine is chosen.

        Raises:
            InputError: It is absent, or given for another engine.
        """
        if (self.engine == "milvus") != (self.uri is not None):
            raise InputError("--engine milvus and --uri go together: give both, or neither to search the retriever")
        if self.run is not None and self.uri is None:
            raise InputError("--run is for --engine milvus: the retriever has a query tower of its own")
        return self.uri


@contextmanager
def open_client(
    options: EngineOptions,
    target: str,
    models: Path,
    timeout_seconds: float,
    credentials: "grpc.ChannelCredentials | None" = None,
) -> Iterator["SearchClient"]:
    """Yield the client that the options choose.

    Args:
        options: Of the command.
        target: `host:port` of the server of the retriever, or of the query tower for Milvus.
        models: The folder of the exports, whose manifests tell the runs of query towers.
        timeout_seconds: Deadline of each request.
        credentials: For TLS to the server.

    Raises:
        InputError: The options do not go together, or no server answers.
    """
    from q2s_tf.serving.connection import check_reachable

    uri = options.milvus_uri
    if options.run is None:
        check_reachable(target, timeout_seconds, credentials)
    if uri is None:
        from q2s_tf.serving.client import Client

        with Client(target, timeout_seconds, credentials) as client:
            yield client
        return
    from q2s_tf.extras import require

    require("milvus")
    from q2s_tf.milvus.engine_client import EngineClient
    from q2s_tf.milvus.query_encoders import LocalQueryTower, QueryEncoder, ServedQueryTower
    from q2s_tf.models import load
    from q2s_tf.serving.client import Client

    with Client(target, timeout_seconds, credentials) as served:
        encoder: QueryEncoder = (
            ServedQueryTower(served, models) if options.run is None else LocalQueryTower(load(options.run))
        )
        with EngineClient(uri, encoder, options.collection, options.token, timeout_seconds) as client:
            yield client
