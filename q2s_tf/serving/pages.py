"""Answers page by page: cheap for the first page, costlier for later ones.

Most searchers look at the first page only. The paper searched little of the index for it, and more for the pages that
are asked for after it: the same engagement for far less work (Que2Search, KDD 2021, section on serving).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grpc

from q2s_tf.serving import DEFAULT_EFFORT
from q2s_tf.serving.messages import Matches, Version
from q2s_tf.serving.serving_error import ServingError

ALL_PARTITIONS = 2**31 - 1
"""More partitions than any index has; it searches those that it has."""


class Page(NamedTuple):
    """Documents of one query, best first, with what finding them took: ``effort``, and the retriever's ``version``."""

    document_ids: list[str]
    scores: list[float]
    effort: int
    version: int


class IndexInfo(NamedTuple):
    """What a ``version`` of the retriever tells of its index: ``partitions``, and how many are searched by default."""

    partitions: int
    default_effort: int
    version: int


def choose_efforts(index: IndexInfo | None) -> list[int]:
    """The effort of each page: half the index's default for the first, then twice the last, up to all partitions.

    Of an index that is not known (None): its own default, then all partitions.
    """
    if index is None:
        return [DEFAULT_EFFORT, ALL_PARTITIONS]
    efforts = [max(1, index.default_effort // 2)]
    while efforts[-1] < index.partitions:
        efforts.append(min(2 * efforts[-1], index.partitions))
    return efforts


def turn(
    retrieve: Callable[[int, int, Version | None], Matches],
    describe: Callable[[Version | None], IndexInfo | None],
    page_size: int,
    efforts: Sequence[int] | None,
    version: Version | None,
) -> Iterator[Page]:
    """Yields pages until there are no more documents; only the last may be short.

    Every page asks for all that was shown and one page more, and leaves out what was shown: a document that only a
    higher effort finds is on the page after, whatever its score. A page that comes short is asked for again with the
    next effort, until there is none. All pages are of the version that gave the first; when that is gone, of the one
    that took its place.

    Args:
        retrieve: From k, effort and version to the best documents of the query.
        describe: From a version to what its index is like, which may be out of date except for a version's number.
        page_size: Documents of a page.
        efforts: Of each page, the last one also of those after it; `choose_efforts` if None.
        version: Which version is asked for; None for the newest.

    Raises:
        ServingError: The server did not answer, or has no such version.
    """
    shown: set[str] = set()
    pinned, step = version, 0
    while True:
        index = None if efforts else describe(pinned)
        ladder = efforts or choose_efforts(index)
        step = min(step, len(ladder) - 1)
        try:
            found = retrieve(len(shown) + page_size, ladder[step], pinned)
        except ServingError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND or pinned == version:
                raise
            pinned = version
            continue
        pinned = found.version
        if index is not None and index.version != pinned:  # another version than the one whose efforts these are
            continue
        pairs = zip(found.document_ids[0].tolist(), found.scores[0].tolist(), strict=True)
        fresh = [(name, score) for name, score in pairs if name and name not in shown][:page_size]
        if len(fresh) == page_size or step == len(ladder) - 1:
            if fresh:
                shown.update(name for name, _ in fresh)
                yield Page([name for name, _ in fresh], [score for _, score in fresh], ladder[step], found.version)
            if len(fresh) < page_size:
                return
        step += 1
