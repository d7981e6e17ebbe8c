"""A cache for repeated requests. The paper keeps query embeddings for eight hours."""

import hashlib
import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

ENTRY_BYTES = 450
"""Memory of an entry in addition to its answer (measured: 408)."""


class AnswerCache:
    """Serialized answers, limited by age and by total size; thread-safe.

    The key is the request together with an object that identifies one loading of a version. So an answer that a
    replaced version computes after its replacement is never returned, and the cache keeps no version in memory.
    """

    def __init__(self, seconds: float, max_bytes: int, timer: Callable[[], float] = time.monotonic) -> None:
        """Keeps an answer for ``seconds``; above ``max_bytes`` the least recently used answers are evicted."""
        self._answers: TTLCache[tuple[object, bytes], bytes] = TTLCache(
            max_bytes, seconds, timer, lambda answer: len(answer) + ENTRY_BYTES
        )
        self._lock = threading.Lock()

    def get(self, loading: object, request: bytes) -> bytes | None:
        """The answer to a request, None if it is not in the cache."""
        with self._lock:
            return self._answers.get((loading, _digest(request)))

    def put(self, loading: object, request: bytes, answer: bytes) -> None:
        """Adds an answer, unless it alone is larger than the cache."""
        if len(answer) + ENTRY_BYTES <= self._answers.maxsize:
            with self._lock:
                self._answers[loading, _digest(request)] = answer

    def clear(self) -> None:
        """Removes all answers."""
        with self._lock:
            self._answers.clear()

    def size_bytes(self) -> int:
        """The memory of all answers, keys included."""
        with self._lock:
            self._answers.expire()
            return int(self._answers.currsize)


def _digest(request: bytes) -> bytes:
    """A collision-resistant key of 32 bytes for a request of any length."""
    return hashlib.blake2b(request, digest_size=32).digest()
