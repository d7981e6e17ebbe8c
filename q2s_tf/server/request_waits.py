"""Waits of requests and of peers, and their bounds: a thread is always free for a call that needs none of them."""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import grpc

from q2s_tf.serving.serving_error import ServingError

MAX_RUNNING = max(4, os.cpu_count() or 1)
"""Predict requests that run at once: several even on one core, so that a large batch blocks no queries."""
MAX_WAITING = 64
"""Predict requests that wait to run, each in a thread and with its message in memory."""
MAX_RECEIVING = 32
"""Requests of one protocol of which only a part has arrived; one of gRPC holds a thread."""
MAX_THREADS = MAX_RUNNING + MAX_WAITING + MAX_RECEIVING + 12
"""More than requests can hold, so that calls for health and status wait for nothing."""


class Turns:
    """Runs at most `MAX_RUNNING` requests at once, in the order of their arrival, which no semaphore keeps."""

    def __init__(self) -> None:
        self._running, self.waiting, self._lock = 0, deque[threading.Lock](), threading.Lock()

    def begin(self, seconds: float) -> None:
        """Waits for a turn, at most ``seconds``; `end` must be called after it.

        Raises:
            ServingError: DEADLINE_EXCEEDED if there was none in time, UNAVAILABLE if `MAX_WAITING` wait already.
        """
        overload = "the server receives more requests than it can answer"
        with self._lock:
            if self._running < MAX_RUNNING and seconds > 0:
                self._running += 1
                return
            if len(self.waiting) >= MAX_WAITING:
                raise ServingError(grpc.StatusCode.UNAVAILABLE, f"{MAX_WAITING} requests wait already; {overload}")
            turn = threading.Lock()
            turn.acquire()
            self.waiting.append(turn)
        if not turn.acquire(timeout=max(0.0, seconds)):
            with self._lock:
                if turn in self.waiting:  # otherwise it was given meanwhile
                    self.waiting.remove(turn)
                    limit = f"the request could not run within {max(0.0, seconds):.3g} s"
                    raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{limit}; {overload}")

    def end(self) -> None:
        """Gives the turn to the request that has waited for the longest time."""
        with self._lock:
            if self.waiting:
                self.waiting.popleft().release()
            else:
                self._running -= 1


class PeerWaits:
    """Waits for peers. One that takes longer than ``seconds`` is ended, and so is the oldest of more than ``most``."""

    def __init__(self, seconds: float, most: int = MAX_RECEIVING) -> None:
        self._seconds, self._most = seconds, most
        self._waits: dict[object, tuple[float, Callable[[], object]]] = {}  # oldest first
        self._lock = threading.Lock()

    def start(self, wait: object, end: Callable[[], object]) -> None:
        """Begins a wait, if it has not begun; ``end`` is called, from any thread, if it must end before `finish`."""
        with self._lock:
            self._waits.setdefault(wait, (time.monotonic(), end))
            excess = len(self._waits) > self._most
        if excess:
            self.end_oldest()

    def finish(self, wait: object) -> None:
        """Forgets a wait, if it has not ended before."""
        with self._lock:
            self._waits.pop(wait, None)

    def end_late(self) -> None:
        """Ends the waits that have taken too long."""
        while self.end_oldest(before=time.monotonic() - self._seconds):
            pass

    def end_oldest(self, before: float = math.inf) -> bool:
        """Ends the oldest wait, if it began ``before``; whether there was one."""
        with self._lock:
            wait, (start, end) = next(iter(self._waits.items()), (None, (math.inf, None)))
            if end is None or start >= before:
                return False
            del self._waits[wait]
        with suppress(RuntimeError):  # the event loop of the wait may be closed
            end()
        return True
