"""How much memory a process and its children hold, and how to end them all."""

import contextlib
import threading

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
        while not self._done.wait(self._interval):
            own, shared = 0, 0
            for process in self._family():
                with contextlib.suppress(psutil.Error):
                    info = process.memory_info()
                    # Libraries that several processes have loaded are in memory once.
                    common = getattr(info, "shared", 0)  # known on Linux alone
                    own, shared = own + info.rss - common, max(shared, common)
            self.peak_bytes = max(self.peak_bytes, own + shared)
