"""Several processes on one machine that compute together, for lessons and tests.

    with Processes(4) as processes:
        processes.run(lambda: torch.distributed.get_rank())     -> [0, 1, 2, 3]

Each is a Python of its own with one thread, all joined by `torch.distributed` (gloo, on the CPU).
A cluster starts its processes with `torchrun` instead; what they run is the same.
"""

import contextlib
import io
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType
from typing import Any

import dill
import torch
import torch.distributed as dist

from minillm.train.travel import pack, unpack

# Imported once where a new process is a copy (see `_beginning`).
IMPORTED = ["minillm.train.parallel", "minillm.train.snapshots", "minillm.data.streaming"]
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
    """The parent's end of one process: tasks go there, answers come back."""

    def __init__(self, rank: int, n: int, folder: Path, timeout: float):
        self.name, self.log = f"rank {rank} of {n}", folder / f"{rank}.log"
        context = _beginning()
        self.tasks, theirs = context.Pipe()
        surroundings = str(self.log), os.getcwd(), dict(os.environ)
        group = rank, n, str(folder / "store"), timeout
        self.process = context.Process(
            target=_serve, args=(theirs, surroundings, group), daemon=True
        )
        with _empty_program():
            self.process.start()
        theirs.close()

    def ask(self, task: bytes) -> tuple[bytes, str]:
        """The pickled result and what was printed.

        Raises:
            RuntimeError: the task raised.
            ChildProcessError: the process is no more.
        """
        try:
            self.tasks.send_bytes(task)
            result, printed, error = pickle.loads(self.tasks.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            log = self.log.read_text(errors="replace").strip()
            status = self.process.exitcode
            raise ChildProcessError(f"{self.name} ended with status {status}\n{log}") from None
        if error:
            raise RuntimeError(f"{self.name}: {error}")
        return result, printed

    def end(self) -> None:
        self.process.kill()
        self.process.join()  # a thread that still reads from it now meets the end


def _beginning() -> BaseContext:
    """On Linux each process is a copy of a Python that has done nothing but import.

    Elsewhere the system's own libraries may not survive being copied, so each begins anew.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@contextlib.contextmanager
def _empty_program() -> Iterator[None]:
    """A new process would run our script again, to find in it what it is to do; ours needs none."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(parent: Connection, surroundings: tuple[str, str, dict], group: tuple) -> None:
    """The life of one process: join the group, then answer tasks until it is ended."""
    log, folder, variables = surroundings
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends us
    os.chdir(folder)
    os.environ.clear()  # a copy has what its original had
    os.environ.update(variables, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(parent, tasks), daemon=True).start()
    rank, n, store, timeout = group
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, n),
        rank=rank,
        world_size=n,
        timeout=timedelta(seconds=timeout),
    )
    while True:
        parent.send_bytes(pickle.dumps(_answer(tasks.get())))


def _receive(parent: Connection, tasks: queue.SimpleQueue) -> None:
    """Queue the tasks, and leave with the parent, even from the middle of one."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks.put(parent.recv_bytes())
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
