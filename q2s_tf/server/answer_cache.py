"""A cache for repeated requests. The paper keeps query embeddings for eight hours."""

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cachetools import TTLCache
from google.protobuf.message import Message

Key = tuple[object, bytes]

ENTRY_BYTES = 450  # memory of an entry in addition to its answer (measured: 408)


class AnswerCache:
    """Serialized answers, limited by age and by total size; thread-safe.

    The key, from `request_key`, has an object that identifies one loading of a version. So an answer that a replaced
    version computes after its replacement is never returned, and the cache keeps no version in memory.
    """

    def __init__(self, seconds: float, max_bytes: int, timer: Callable[[], float] = time.monotonic) -> None:
        """Keeps an answer for ``seconds``; above ``max_bytes`` the least recently used answers are evicted."""
        self._answers: TTLCache = TTLCache(max_bytes, seconds, timer, lambda answer: len(answer) + ENTRY_BYTES)
        self._lock = threading.Lock()

    def get(self, key: Key) -> bytes | None:
        """An answer, None if it is not in the cache."""
        with self._lock:
            return self._answers.get(key)

    def put(self, key: Key, answer: bytes) -> None:
        """Adds an answer, unless it alone is larger than the cache."""
        with suppress(ValueError), self._lock:
            self._answers[key] = answer

    def clear(self) -> None:
        """Removes all answers."""
        with self._lock:
            self._answers.clear()

    def size_bytes(self) -> int:
        """The memory of all answers, keys included."""
        with self._lock:
            self._answers.expire()
            return int(self._answers.currsize)


def request_key(loading: object, request: Message) -> Key:
    """The key of a request: `Servable.loading`, and a collision-resistant hash of the message."""
    return loading, hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=32).digest()
