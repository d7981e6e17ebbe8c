"""Answers kept for requests that come again: the paper keeps query embeddings for eight hours."""

import hashlib
import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

ENTRY_BYTES = 450
"""What an entry takes beside its answer (measured: 408)."""


class AnswerCache:
    """Serialized answers by the servable that gave them and the request; bounded by time and by bytes; thread-safe.

    A servable goes in with the object that stands for its loading, so that an answer which a replaced version computes
    a moment after the swap is never found again, and nothing here keeps that version in memory.
    """

    def __init__(self, seconds: float, max_bytes: int, timer: Callable[[], float] = time.monotonic) -> None:
        """Keeps an answer for ``seconds``, and those asked for last if all would take more than ``max_bytes``."""
        self._answers: TTLCache[tuple[object, bytes], bytes] = TTLCache(max_bytes, seconds, timer, _size)
        self._lock = threading.Lock()

    def get(self, loading: object, request: bytes) -> bytes | None:
        """The answer of a servable to a request, None if it is not kept (any more)."""
        with self._lock:
            return self._answers.get((loading, _digest(request)))

    def put(self, loading: object, request: bytes, answer: bytes) -> None:
        """Keeps an answer, unless it alone is larger than the cache."""
        if _size(answer) <= self._answers.maxsize:
            with self._lock:
                self._answers[loading, _digest(request)] = answer

    def clear(self) -> None:
        """Forgets all answers."""
        with self._lock:
            self._answers.clear()

    def size_bytes(self) -> int:
        """What the kept answers take, with their keys."""
        with self._lock:
            self._answers.expire()
            return int(self._answers.currsize)


def _size(answer: bytes) -> int:
    return len(answer) + ENTRY_BYTES


def _digest(request: bytes) -> bytes:
    """A request of any length as 32 bytes that nobody can give to another request."""
    return hashlib.blake2b(request, digest_size=32).digest()
