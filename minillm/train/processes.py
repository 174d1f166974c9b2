"""Several processes on one machine that compute together, for lessons and tests.

    with Processes(4) as processes:
        processes.run(lambda: torch.distributed.get_rank())     -> [0, 1, 2, 3]

Each is a fresh Python with one thread, all joined by `torch.distributed` (gloo, on the CPU). A
cluster starts its processes with `torchrun` instead; what they run is the same.
"""

import contextlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import dill
import torch
import torch.distributed as dist

from minillm.train.travel import pack, unpack

GRACE = 1.0  # seconds for the other processes to say what they noticed, once one has failed


class Processes:
    """`n` processes in one group, ended with the `with` block.

    Args:
        n: how many.
        timeout: seconds a process waits for the others in one collective operation before that
            is an error.

    Raises:
        ValueError: n is below 1.
    """

    def __init__(self, n: int, timeout: float = 60.0):
        if n < 1:
            raise ValueError(f"n={n}: expected at least one process")
        self.n, self.timeout = n, timeout
        self._workers: list[_Worker] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Processes":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def run(self, function: Callable, *args) -> list[Any]:
        """Call ``function(*args)`` in every process.

        The function travels by value, so it may come from a notebook cell; it asks
        `torch.distributed.get_rank` which process it is in. What it prints is printed here.

        Returns:
            What it returned, in the order of the ranks.

        Raises:
            RuntimeError: it raised in some process, or the process ended; the message has the rank
                and the traceback. All processes are ended, and the next `run` starts new ones.
        """
        task = pack(function, args)
        if not self._workers:
            self._start()
        with ThreadPoolExecutor(self.n) as pool:
            replies = [pool.submit(worker.ask, task) for worker in self._workers]
            try:
                wait(replies, return_when=FIRST_EXCEPTION)
                if _failures(replies):
                    wait(replies, timeout=GRACE)
                    raise RuntimeError("\n".join(_failures(replies)))
            except BaseException:
                self._end()  # the rest may be waiting for the one that failed
                raise
        for rank, reply in enumerate(replies):
            for line in reply.result()[1].splitlines():
                print(f"[{rank}] {line}")
        return [dill.loads(reply.result()[0]) for reply in replies]

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self._workers = [_Worker(rank, self.n, folder, self.timeout) for rank in range(self.n)]

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _failures(replies: list[Future]) -> list[str]:
    """What went wrong so far. Processes that ended come first: they are why others complain."""
    errors = [reply.exception() for reply in replies if reply.done() and reply.exception()]
    errors.sort(key=lambda error: not isinstance(error, ChildProcessError))
    return [str(error) for error in errors]


class _Worker:
    """The parent's end of one process: tasks go into its stdin, answers come out of its stdout."""

    def __init__(self, rank: int, n: int, folder: Path, timeout: float):
        self.name, self.log = f"rank {rank} of {n}", folder / f"{rank}.log"
        where = os.pathsep.join(path or os.getcwd() for path in sys.path)  # to find what we find
        command = [sys.executable, "-m", "minillm.train.processes"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, str(rank), str(n), str(folder / "store"), str(timeout)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"},
            )

    def ask(self, task: bytes) -> tuple[bytes, str]:
        """The pickled result and what was printed.

        Raises:
            RuntimeError: the task raised.
            ChildProcessError: the process is no more.
        """
        try:
            pickle.dump(task, self.process.stdin)
            self.process.stdin.flush()
            result, printed, error = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            status = self.process.wait()
            log = self.log.read_text(errors="replace").strip()
            raise ChildProcessError(f"{self.name} ended with status {status}\n{log}") from None
        if error:
            raise RuntimeError(f"{self.name}: {error}")
        return result, printed

    def end(self) -> None:
        self.process.kill()
        self.process.wait()  # a thread that still reads from it now meets the end


def _serve(rank: int, n: int, store: str, timeout: float) -> None:
    """The life of one process: join the group, then answer tasks until it is ended."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing else writes between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends us
    torch.set_num_threads(1)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, tasks), daemon=True).start()
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, n),
        rank=rank,
        world_size=n,
        timeout=timedelta(seconds=timeout),
    )
    while True:
        pickle.dump(_answer(tasks.get()), answers)
        answers.flush()


def _receive(stream: BinaryIO, tasks: queue.SimpleQueue) -> None:
    """Queue the tasks, and leave with the parent, even from the middle of one."""
    with contextlib.suppress(EOFError):
        while True:
            tasks.put(pickle.load(stream))
    os._exit(0)


def _answer(task: bytes) -> tuple[bytes, str, str]:
    """The pickled result of one task, what it printed, and its traceback if it failed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            function, args = unpack(task)
            result = dill.dumps(function(*args), byref=True)
    except BaseException as error:
        here = error.__traceback__.tb_next  # without this function's own line
        text = traceback.format_exception(type(error), error, here)
        return b"", printed.getvalue(), "".join(text)
    return result, printed.getvalue(), ""


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
