"""The threads that answer requests, and the bounds of what peers can hold by sending or reading nothing.

A call of gRPC's Python server holds a thread from its headers to its answer. Few threads are the fastest: each further
one makes all of them slower. But calls without a message and long graphs can hold all of them, while a health check
waits. So there are a few regular threads, and spare ones, more than can be held, for calls that wait behind those.
"""

import math
import os
import queue
import threading
import time
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
MAX_SPARE = MAX_WAITING + MAX_RECEIVING + 8
PATIENCE_SECONDS = 0.2
Call = tuple[float, futures.Future, Callable[[], Any]]


class RequestThreads(futures.Executor):
    """The regular threads, and a thread of its own for each call that has waited for too long."""

    def __init__(self, regular: int = MAX_RUNNING) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._taken = 0.0  # when the call arrived that was taken last
        self._regular = [self._start(self._work) for _ in range(regular)]
        self._spare: list[threading.Thread] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future:
        """See `concurrent.futures.Executor.submit`."""
        future: futures.Future = futures.Future()
        self._calls.put((time.monotonic(), future, partial(function, *args, **kwargs)))
        return future

    def run_late(self) -> None:
        """Starts threads for the calls that have waited for too long; must be called often."""
        self._spare = [thread for thread in self._spare if thread.is_alive()]
        with suppress(queue.Empty):
            while self._taken < time.monotonic() - PATIENCE_SECONDS and len(self._spare) < MAX_SPARE:
                call = self._calls.get_nowait()
                if call is None:  # it ends a regular thread
                    return self._calls.put(None)
                self._taken = call[0]
                self._spare.append(self._start(_run, *call))

    def drain(self, seconds: float) -> None:
        """Waits until all calls are complete, at most ``seconds``; none may be submitted afterwards."""
        end = time.monotonic() + seconds
        for _ in self._regular:
            self._calls.put(None)
        for thread in self._regular + self._spare:
            thread.join(max(0.0, end - time.monotonic()))

    @staticmethod
    def _start(target: Callable[..., object], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name="request", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._taken = call[0]
            _run(*call)
            del call  # it holds a request and its answer


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
