"""How much memory a process and its children hold, and how to end them all."""

import contextlib
import threading
import time

import psutil


class MemoryMeter:
    """Follows the resident memory of a process and its children, several times a second."""

    def __init__(self, pid: int, interval: float = 0.1):
        self.peak_bytes = 0
        self._process = psutil.Process(pid)
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join()

    def kill(self) -> None:
        """Kill the process and its children, children first."""
        for process in reversed(self._family()):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def _sample(self) -> None:
        took = 0.0
        while not self._done.wait(max(self._interval, 20 * took)):
            started = time.perf_counter()
            held, family = 0, self._family()
            for process in family:
                with contextlib.suppress(psutil.Error):
                    held += _held(process, among=len(family))
            self.peak_bytes = max(self.peak_bytes, held)
            took = time.perf_counter() - started


def _held(process: psutil.Process, among: int) -> int:
    """Bytes in memory. Linux tells, in milliseconds, this one's share of what several hold."""
    if psutil.LINUX and among > 1:
        return process.memory_full_info().pss
    return process.memory_info().rss
