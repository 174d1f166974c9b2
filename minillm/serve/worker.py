"""The one thread that computes, and how tokens get from it to the requests that wait for them.

HTTP runs on an event loop that must never wait for a matrix product; the scheduler is not made for
two threads at once. So one thread owns the scheduler. Requests reach it through an inbox that it
empties between two steps, tokens come back through a queue for each request.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

from minillm.infer.scheduler import Event, Request, Scheduler

log = logging.getLogger(__name__)


class WorkerStopped(RuntimeError):
    """The computing thread has failed or was closed; no request can be answered any more."""


class Stream:
    """The events of one request, in order: `async for event in stream`.

    Ends after the event that carries a `finish`.

    Raises:
        WorkerStopped: while reading, if the computing thread failed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._events: asyncio.Queue[Event | WorkerStopped] = asyncio.Queue()
        self.id: int | None = None  # given by the scheduler

    def put(self, event: Event | WorkerStopped) -> None:
        """Called from the computing thread."""
        _tell(self._loop, self._events.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            if isinstance(event, WorkerStopped):
                raise event
            yield event
            if event.finish:
                return


class Worker:
    """Runs a scheduler in a thread of its own, which starts here and ends with `close`."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self._closing = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="minillm-serve", daemon=True)
        self._thread.start()

    @property
    def n_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def n_running(self) -> int:
        return self._scheduler.n_running

    @property
    def n_waiting(self) -> int:
        return self._scheduler.n_waiting

    async def submit(self, request: Request) -> Stream:
        """Hand a request over; returns once the scheduler has taken it.

        Raises:
            ValueError: the request cannot be answered.
            QueueFull: too many are waiting.
            WorkerStopped: nothing can be answered any more.
        """
        if self._closing:  # nobody reads the inbox any more
            raise WorkerStopped("the server is closing")
        loop = asyncio.get_running_loop()
        stream, taken = Stream(loop), loop.create_future()
        self._inbox.put(partial(self._add, request, stream, taken))
        try:
            await taken
        except asyncio.CancelledError:
            self.cancel(stream)
            raise
        return stream

    def cancel(self, stream: Stream) -> None:
        """Stop computing for a stream; one that has ended is left as it is."""
        self._inbox.put(partial(self._cancel, stream))

    def close(self) -> None:
        """End the thread; streams that are still open raise `WorkerStopped`."""
        self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join()

    # What follows runs in the computing thread.

    def _work(self) -> None:
        while not self._closing:
            self._read_inbox(wait=self.error is not None or self._scheduler.idle)
            if self.error is None:
                try:
                    self._step()
                except Exception as error:
                    log.exception("computing failed; no further request is answered")
                    self._fail(error)
        self._fail(RuntimeError("the server is closing"))
        self._read_inbox(wait=False)

    def _read_inbox(self, wait: bool) -> None:
        if wait:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _step(self) -> None:
        for event in self._scheduler.step():
            stream = self._streams[event.id]
            if event.finish:
                del self._streams[event.id]
            stream.put(event)

    def _fail(self, error: Exception) -> None:
        self.error = error
        for stream in self._streams.values():
            stream.put(WorkerStopped(str(error)))
        self._streams.clear()

    def _add(self, request: Request, stream: Stream, taken: asyncio.Future) -> None:
        try:
            if self.error is not None:
                raise WorkerStopped(str(self.error))
            stream.id = self._scheduler.add(request)
            self._streams[stream.id] = stream
            _tell(taken.get_loop(), _settle, taken, None)
        except Exception as error:  # it belongs to whoever asked
            _tell(taken.get_loop(), _settle, taken, error)

    def _cancel(self, stream: Stream) -> None:
        if self._streams.get(stream.id) is stream:
            self._scheduler.cancel(stream.id)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable, *args: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)


def _settle(future: asyncio.Future, error: Exception | None) -> None:
    """Unless whoever waited is gone."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
