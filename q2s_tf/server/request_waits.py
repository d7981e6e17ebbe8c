"""The threads that answer requests, and the bounds of what peers can hold by sending or reading nothing.

A call of gRPC's Python server holds a thread from its headers to its answer. Few threads are the fastest: each further
one makes all of them slower. But calls without a message and long graphs can hold all of them, while a health check
waits. So there are a few regular threads, and spare ones, more than can be held, for calls that wait behind others.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from functools import partial
from typing import Any

MAX_RUNNING = max(4, os.cpu_count() or 1)
"""Predict requests that run at once: several even on one core, so that a large batch blocks no queries."""
MAX_WAITING = 32
"""Predict requests that may hold a thread while they wait to run."""
MAX_RECEIVING = 32
"""Requests of one protocol of which only a part has arrived; a further one ends the oldest."""
PATIENCE_SECONDS = 0.2


class RequestThreads(futures.Executor):
    """The regular threads, and the spare ones for calls that have waited for too long."""

    def __init__(self, regular: int = MAX_RUNNING) -> None:
        self._regular = futures.ThreadPoolExecutor(regular, "request")
        self._spare = futures.ThreadPoolExecutor(MAX_WAITING + MAX_RECEIVING + 8, "request-spare")
        self._calls = deque[tuple[float, futures.Future, Callable[[], Any]]]()  # that wait for a thread, oldest first

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future:
        """See `concurrent.futures.Executor.submit`."""
        future: futures.Future = futures.Future()
        self._calls.append((time.monotonic(), future, partial(function, *args, **kwargs)))
        self._regular.submit(self._run_oldest)
        return future

    def run_late(self) -> None:
        """Runs the calls that have waited for too long in spare threads; to be called often."""
        while self._calls and self._calls[0][0] < time.monotonic() - PATIENCE_SECONDS:
            with suppress(IndexError):  # a regular thread has taken it
                self._spare.submit(_run, *self._calls.popleft())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        self._regular.shutdown(wait, cancel_futures=cancel_futures)
        self._spare.shutdown(wait, cancel_futures=cancel_futures)

    def _run_oldest(self) -> None:
        with suppress(IndexError):  # a spare thread has taken it
            call = self._calls.popleft()
            _run(*call)


def _run(_: float, future: futures.Future, call: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)


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
