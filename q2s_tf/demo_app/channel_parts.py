"""What each channel of a document adds to its cosine with a query, from the towers of a run."""

from pathlib import Path
from typing import Any

import numpy as np

from q2s_tf.errors import InputError
from q2s_tf.models import load
from q2s_tf.report.channels import channel_function, read_channels, take_rows
from q2s_tf.report.explain import contributions
from q2s_tf.serving.search_client import SearchClient
from q2s_tf.tables import open_documents

PROBE = "red sofa"
"""A query whose embeddings by the server and by the run are compared."""


class ChannelParts:
    """The parts of cosines, computed in this process for one document at a time; safe to share between threads.

    Args:
        client: the client of the server.
        run: the run that the server's index was exported from.
        documents: the catalogue.

    Raises:
        InputError: no trained run, or not the one of the server's query tower; or a table without the columns that its
            document tower reads.
    """

    def __init__(self, client: SearchClient, run: Path, documents: Path):
        self._towers = load(run)
        served, own = client.embed_query([PROBE]).embedding, self._towers.encode_queries([PROBE])
        if served.shape != own.shape or not np.allclose(served, own, atol=1e-2):
            raise InputError(
                f"--explain {run}: the query tower of the server was exported from another run: give that one"
            )
        self._names = self._towers.config.tower_inputs("document")
        self._table = open_documents(documents, self._names, self._towers.config.vector_inputs())
        self._query_function = channel_function(self._towers.query)
        self._document_function = channel_function(self._towers.document)

    def of(self, query: str, country: str, row: int) -> list[dict[str, Any]]:
        """The document channels with their `part`; the sum is the cosine. A missing channel is left out.

        Args:
            query: the query.
            country: country of the searcher, "" if it is unknown.
            row: row of the document in the catalogue.
        """
        queries = read_channels(self._towers.query, {"query": [query], "country": [country]}, self._query_function)
        rows = take_rows(self._table, [row])
        columns = {name: rows[name].to_pylist() for name in self._names}
        answers = read_channels(self._towers.document, columns, self._document_function)
        parts = contributions(queries, 0, answers, 0).sum(axis=0).tolist()
        return [
            {"name": name, "part": part}
            for name, part, present in zip(answers.names, parts, answers.present[0], strict=True)
            if present
        ]
