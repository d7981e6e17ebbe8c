"""Pages of the documents of one query, with more effort for later pages."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grpc
import numpy as np

from q2s_tf.serving.serving_error import ServingError

Version = int | str
"""A version by its number or by its label."""


class Matches(NamedTuple):
    """The best documents of each query, best first: ``document_ids: str[B, k]``, ``scores: float[B, k]``.

    A score is the cosine (``embedding_scores``) plus the lexical weight times the BM25 score as a share of the query's
    highest (``lexical_scores``). Where there are fewer than k documents (a small index, or scores below ``min_score``)
    the id is ``""`` and the score is -1. ``version`` is the version of the retriever.
    """

    document_ids: np.ndarray
    scores: np.ndarray
    embedding_scores: np.ndarray
    lexical_scores: np.ndarray
    version: int


class Page(NamedTuple):
    """Documents of one query, best first, with the ``effort`` of the search and the ``version`` of the retriever.

    The scores are those of `Matches`.
    """

    document_ids: list[str]
    scores: list[float]
    embedding_scores: list[float]
    lexical_scores: list[float]
    effort: int
    version: int


class IndexInfo(NamedTuple):
    """The ``partitions`` of the index in a ``version`` of the retriever, and how many are searched by default."""

    partitions: int
    default_effort: int
    version: int


def choose_efforts(index: IndexInfo) -> list[int]:
    """Choose the effort of each page: half the default for page 1, then twice the last, up to all partitions."""
    efforts = [max(1, index.default_effort // 2)]
    while efforts[-1] < index.partitions:
        efforts.append(min(2 * efforts[-1], index.partitions))
    return efforts


def paginate(
    retrieve: Callable[[int, int, Version | None], Matches],
    describe: Callable[[Version | None], IndexInfo],
    page_size: int,
    efforts: Sequence[int] | None,
    version: Version | None,
) -> Iterator[Page]:
    """Yield pages until no documents are left; only the last may be short.

    Most searchers look at the first page only. The paper searches a small part of the index for it and more for later
    pages, which keeps engagement at much less work (Que2Search, KDD 2021, section on serving).

    Every page requests all documents of the pages before and one page more, and leaves out the former. So a document
    that only a higher effort finds is on the next page, whatever its score. A short page is requested again with the
    next effort, if there is one. All pages are from the version of the first, or from its successor if it is removed.

    Args:
        retrieve: From k, effort and version to the best documents of the query.
        describe: From a version to its index. For a label or the newest version the result may be out of date.
        page_size: Documents of a page.
        efforts: Effort of each page; the last is also for later pages. None for those of `choose_efforts`.
        version: The version to search; None for the newest.
    """
    shown: set[str] = set()
    pinned, step = version, 0
    while True:
        index = None if efforts else describe(pinned)
        schedule = choose_efforts(index) if index else list(efforts or ())
        step = min(step, len(schedule) - 1)
        try:
            matches = retrieve(len(shown) + page_size, schedule[step], pinned)
        except ServingError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND or pinned == version:
                raise
            pinned = version
            continue
        pinned = matches.version
        if index and index.version != pinned:  # the efforts are those of another version
            continue
        found = zip(*(column[0].tolist() for column in matches[:4]), strict=True)
        fresh = [match for match in found if match[0] and match[0] not in shown][:page_size]
        if len(fresh) == page_size or step == len(schedule) - 1:
            if fresh:
                names, scores, cosines, lexical = (list(column) for column in zip(*fresh, strict=True))
                shown.update(names)
                yield Page(names, scores, cosines, lexical, schedule[step], pinned)
            if len(fresh) < page_size:
                return
        step += 1
