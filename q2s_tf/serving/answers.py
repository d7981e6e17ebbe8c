"""One query's answer for a person to read: the ranked documents with their titles, and the query's channel weights."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pyarrow as pa
import pyarrow.compute as pc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from q2s_tf import tables
from q2s_tf.errors import InputError
from q2s_tf.serving import DEFAULT_EFFORT
from q2s_tf.serving.connection import connect
from q2s_tf.serving.folders import channel_names
from q2s_tf.serving.serving_error import ServingError

if TYPE_CHECKING:
    from q2s_tf.serving.client import Client


class Question(NamedTuple):
    """What is asked: see `q2s_tf.serving.Client.retrieve`, and for more than one page of ``k``, its `pages`."""

    query: str
    country: str = ""
    k: int = 10
    effort: int = DEFAULT_EFFORT
    min_score: float = -1.0
    filters: Mapping[str, str] = {}
    version: int | str | None = None
    pages: int = 1


class Answer(NamedTuple):
    """What came back: pages of (document id, score), best first, and (channel, weight) of the query."""

    pages: list[list[tuple[str, float]]]
    weights: list[tuple[str, float]]

    @property
    def document_ids(self) -> list[str]:
        """Of all pages."""
        return [document_id for page in self.pages for document_id, _ in page]


def read_filters(assignments: Sequence[str]) -> dict[str, str]:
    """``column=value`` texts by column.

    Raises:
        InputError: A text has no ``=`` or no column, or a column comes twice.
    """
    filters: dict[str, str] = {}
    for text in assignments:
        column, equals, value = text.partition("=")
        if not (column and equals):
            raise InputError(f'--filter must be column=value, and "{text}" came; write for example --filter country=US')
        if column in filters:
            raise InputError(f'--filter may name a column once, and "{column}" came twice; leave one out')
        filters[column] = value
    return filters


def ask(
    question: Question,
    target: str,
    models: Path | None = None,
    timeout_seconds: float = 10.0,
    credentials: grpc.ChannelCredentials | None = None,
) -> Answer:
    """Asks the server at ``target``; channels have their names if the export is in ``models``, else numbers.

    Raises:
        InputError: ``k`` or ``effort`` is out of range, there is no such filter, or the server did not answer: the
            message says why.
    """
    _check_reachable(target, timeout_seconds, credentials)
    from q2s_tf.serving.client import Client

    with Client(target, timeout_seconds, credentials) as client:
        try:
            return _ask(client, question, models)
        except ServingError as error:
            raise InputError(f"the server at {target} refused: {error}") from error


def _check_reachable(target: str, timeout_seconds: float, credentials: grpc.ChannelCredentials | None) -> None:
    """A server that is not there shows at once, not after the seconds that the client's imports take."""
    with connect(target, credentials) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return  # it answered: TensorFlow Serving has the health service only if told so
            if credentials is not None:
                raise InputError(f"no server answers over TLS at {target}: {error.details()}") from error
            raise InputError(
                f"no server answers at {target}; start one with: python tools/serve.py --models saved_models, "
                "or give --tls-ca if it answers over TLS only"
            ) from error


def _ask(client: "Client", question: Question, models: Path | None) -> Answer:
    weights = client.embed_query([question.query], [question.country]).channel_weights[0]
    names = [f"channel {number}" for number in range(1, len(weights) + 1)]
    if models is not None:
        versions = [status.version for status in client.status("query_tower") if status.state == "AVAILABLE"]
        known = channel_names(models, "query_tower", versions[0]) if versions else None
        names = known if known is not None and len(known) == len(weights) else names
    return Answer(_matches(client, question), list(zip(names, weights.tolist(), strict=True)))


def _matches(client: "Client", question: Question) -> list[list[tuple[str, float]]]:
    query, country, k, effort, min_score, filters, version, count = question
    if count > 1:
        pages = client.pages(query, country, k, [effort] if effort else None, min_score, filters, version)
        return [list(zip(page.document_ids, page.scores, strict=True)) for page in islice(pages, count)]
    found = client.retrieve([query], [country], k, effort, min_score, filters, version)
    pairs = zip(found.document_ids[0].tolist(), found.scores[0].tolist(), strict=True)
    return [[(document_id, score) for document_id, score in pairs if document_id]]


def open_catalogue(documents: Path) -> tables.Table:
    """The columns of a catalogue that `look_up` reads.

    Raises:
        InputError: There is no such catalogue, or it lacks a column.
    """
    return tables.Table(documents, "documents", ["document_id", "title"], ["language"])


def look_up(catalogue: tables.Table, ids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The title and language of the documents with these ids; those that the catalogue lacks are left out.

    Raises:
        InputError: The catalogue cannot be read.
    """
    wanted = set(ids)
    found: dict[str, tuple[str, str]] = {}
    for batch in catalogue.batches():
        rows = batch.filter(pc.is_in(batch["document_id"], value_set=pa.array(sorted(wanted), pa.string()))).to_pylist()
        found.update({row["document_id"]: (row["title"] or "", row["language"] or "") for row in rows})
        if len(found) == len(wanted):
            break
    return found


def show(answer: Answer, titles: dict[str, tuple[str, str]] | None, console: Console) -> None:
    """Prints the ranked table, with the page if there are several, and how much each channel of the query weighed."""
    table = Table(box=None, pad_edge=False)
    several = len(answer.pages) > 1
    for column in [*(["page"] if several else []), "rank", "score", "document_id"]:
        table.add_column(column)
    for column in ("language", "title") if titles is not None else ():
        table.add_column(column, overflow="fold")
    matches = [(number, *match) for number, page in enumerate(answer.pages, start=1) for match in page]
    for rank, (number, document_id, score) in enumerate(matches, start=1):
        cells = [*([str(number)] if several else []), str(rank), f"{score:.4f}", document_id]
        if titles is not None:
            title, language = titles.get(document_id, ("", ""))
            cells += [language, title]
        table.add_row(*(_printable(cell) for cell in cells))
    console.print(table if matches else "no document scores above the least score")
    weights = "  ".join(f"{name} {weight:.2f}" for name, weight in answer.weights)
    console.print(_printable(f"channel weights: {weights}"))


def _printable(text: str) -> Text:
    """Listings are written by strangers: neither rich's markup nor a terminal's control codes may act."""
    return Text("".join(character if character.isprintable() else " " for character in text))
