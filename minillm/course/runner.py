"""Run lessons in real kernels, two at a time, and record what each one claimed and cost.

A lesson fails when a cell raises, hangs or kills its kernel, when a claim does not hold, and
when a widget's callback raised: Jupyter shows that last error in the widget and carries on, so
it is searched for in the widget state that the finished notebook holds.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.output_widget import OutputWidget
from papermill import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from minillm.course.meter import MemoryMeter
from minillm.course.outcome import (
    Result,
    failed_claim,
    place,
    plain,
    read_claims,
    read_results,
    widget_error,
    write_results,
)

SCALES = ("lesson", "full")
CELL_TIMEOUT = {"lesson": 300, "full": None}  # seconds; a whole lesson should take 60
GUESS = 40.0  # seconds a lesson takes, until an earlier run says better


def root() -> Path:
    """The course's folder: where we stand if it has `notebooks/`, else where the package lies.

    Raises:
        ValueError: neither holds a `notebooks/` folder.
    """
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "notebooks").is_dir():
            return folder
    raise ValueError("no notebooks/ here: run this from the folder the course was cloned into")


def find_lessons(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """Notebooks for "04", "4" or "04_attention_to_transformer"; every lesson for no names.

    Raises:
        ValueError: a name is no lesson.
    """
    every = sorted(((folder or root()) / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    by_name = {name: path for path in every for name in (path.stem[:2], path.stem, path.name)}
    found = {}
    for name in names:
        given = Path(name)
        key = given.name if given.parent.name in ("", "notebooks") else name
        found[name] = by_name.get(f"0{key}" if len(key) == 1 else key)
        if found[name] is None:
            numbers = ", ".join(path.stem[:2] for path in every)
            hint = f"expected {numbers}, or a full name" if every else "there are no lessons here"
            raise ValueError(f"unknown lesson {name!r}: {hint}")
    return sorted(set(found.values())) if names else every


def check_parameters(lessons: Iterable[Path], parameters: dict) -> None:
    """Refuse a parameter that a lesson's parameters cell does not set (papermill only warns).

    Raises:
        ValueError: naming the lesson, the parameter and what the lesson has.
    """
    for path in lessons:
        known = inspect_notebook(path)
        for name in parameters:
            if name not in known:
                has = ", ".join(known) or "none"
                raise ValueError(f"{path.stem} has no parameter {name!r}: it has {has}")


def run(
    lessons: Sequence[Path],
    parameters: dict | None = None,
    *,
    build: Path,
    jobs: int = 2,
    cell_timeout: float | None = CELL_TIMEOUT["lesson"],
    console: Console | None = None,
) -> list[Result]:
    """Execute lessons and write `build/notebooks/*.ipynb` and `build/results.json`.

    Args:
        lessons: notebooks, as `find_lessons` gives them.
        parameters: values for the parameters cell, such as {"seed": 3}.
        build: folder for what comes out; results are written as each lesson finishes.
        jobs: how many kernels run at once; with two or more, each computes on one thread.
        cell_timeout: seconds after which a cell counts as hanging; None waits for ever.
        console: where progress is shown.

    Raises:
        ValueError: a lesson has no such parameter; nothing has run then.
        KeyboardInterrupt: after stopping the kernels; finished lessons are in results.json.
    """
    parameters = parameters or {}
    check_parameters(lessons, parameters)
    console = console or Console()
    earlier = {result.lesson: result.seconds for result in read_results(build) if result.passed}
    runs = [LessonRun(path, parameters, build, jobs, cell_timeout) for path in lessons]
    started = time.monotonic()

    def progress() -> Group:
        return _progress(runs, earlier, jobs, time.monotonic() - started)

    def save() -> list[Result]:
        results = [run.result for run in runs if run.result]
        write_results(build, results, parameters, jobs, time.monotonic() - started)
        return results

    save()
    pool = ThreadPoolExecutor(max_workers=jobs)
    pending = {pool.submit(run.execute): run for run in runs}
    # Without a terminal there is nothing to redraw: the lines below say the same.
    live = Live(get_renderable=progress, console=console, refresh_per_second=4, transient=True)
    try:
        with live if console.is_terminal else contextlib.nullcontext():
            while pending:
                for future in wait(pending, timeout=0.2, return_when="FIRST_COMPLETED").done:
                    future.result()
                    _announce(console, pending.pop(future).result)
                    if not console.is_terminal:
                        console.print(progress())
                    save()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for lesson in runs:
            lesson.stop()
        raise
    finally:
        pool.shutdown()
    return save()


class LessonRun:
    """One lesson on its way through a kernel. Progress reads it while it runs."""

    def __init__(
        self, path: Path, parameters: dict, build: Path, jobs: int, cell_timeout: float | None
    ):
        self.name = path.stem
        self.path, self.parameters, self.build, self.jobs = path, parameters, build, jobs
        self.cell_timeout = cell_timeout
        self.result: Result | None = None
        self.cell = self.n_cells = 0
        self.started: float | None = None
        self._stopped = False
        self._meter: MemoryMeter | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the kernel was asked for; 0 while waiting."""
        return time.monotonic() - self.started if self.started else 0.0

    def execute(self) -> None:
        """Run every cell, whatever happens keep the notebook, and set `result`."""
        self.started = time.monotonic()
        notebook = load_notebook_node(str(self.path))
        notebook = parameterize_notebook(notebook, self.parameters)
        self.n_cells = len(notebook.cells)
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=self.cell_timeout,
            shutdown_kernel="immediate",
            resources={"metadata": {"path": str(self.path.parent)}},
            on_cell_start=self._on_cell_start,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
        client.widget_registry = {"@jupyter-widgets/output": {"OutputModel": SilentOutput}}
        self._client = client
        try:
            client.execute(env=kernel_environment(self.jobs))
            error = failed_claim(notebook) or widget_error(notebook)
        except Exception as raised:  # a broken kernel must not take the other lessons with it
            error = f"{place(notebook, self.cell)}: {_explain(raised, self.cell_timeout)}"
        finally:
            if self._meter:
                self._meter.stop()
        status = "stopped" if self._stopped else "failed" if error else "passed"
        _write_notebook(self.build / "notebooks" / self.path.name, notebook)
        self.result = Result(
            lesson=self.name,
            status=status,
            seconds=self.elapsed,
            peak_bytes=self._meter.peak_bytes if self._meter else 0,
            error="stopped before it finished" if self._stopped else error,
            claims=read_claims(notebook),
        )

    def stop(self) -> None:
        """Kill the kernel; `execute`, in its own thread, then ends as "stopped"."""
        if self.result is None:
            self._stopped = True
            if self._meter:
                self._meter.kill()

    def _on_cell_start(self, cell, cell_index: int) -> None:
        self.cell = cell_index
        if self._meter is None:
            self._meter = MemoryMeter(self._client.km.provisioner.pid)
        if self._stopped:
            self._meter.kill()


class SilentOutput(OutputWidget):
    """Collects what an `interact` callback prints, as a browser would, and keeps it to itself.

    nbclient echoes each output to the kernel, on the socket on which it waits for the cell's
    reply. When the two cross, the wake-up for the reply is lost and the cell seems to hang.
    """

    def sync_state(self) -> None:
        pass


def kernel_environment(jobs: int) -> dict[str, str]:
    """The environment of a lesson's kernel: offline hub, one thread each when several run."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if jobs > 1 else {}
    return dict(os.environ) | {"HF_HUB_OFFLINE": "1"} | threads


def _write_notebook(path: Path, notebook: nbformat.NotebookNode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def _explain(error: Exception, timeout: float | None) -> str:
    match error:
        case CellExecutionError():
            return f"{error.ename}: {plain(error.evalue)}"
        case CellTimeoutError():
            return f"still running after {timeout:g} s, taken for hanging and stopped"
        case DeadKernelError():
            return "the kernel died (killed, out of memory, or it ended the process itself)"
        case _:
            return f"{type(error).__name__}: {error}"


def _announce(console: Console, result: Result) -> None:
    n_claims = sum(record.op is not None for record in result.claims)
    mark = "[green]✓[/]" if result.passed else "[red]✗[/]"
    cost = f"{result.seconds:5.1f} s  {result.peak_bytes / 1e6:6,.0f} MB"
    console.print(f"{mark} {result.lesson:<32} {cost}  {n_claims} claims")
    if result.error:
        console.print(f"  {result.lesson}: {result.error}", markup=False, soft_wrap=True)


def _progress(runs: list[LessonRun], earlier: dict[str, float], jobs: int, elapsed: float) -> Group:
    """What runs now, and how long the rest should take, judged by earlier runs."""
    lines = Table.grid(padding=(0, 2))
    left = []
    done = 0
    for run in runs:
        expected = earlier.get(run.name, GUESS)
        if run.result:
            done += 1
        elif run.started:
            left.append(max(expected - run.elapsed, 1.0))
            where = f"cell {run.cell + 1} of {run.n_cells}" if run.n_cells else "starting"
            lines.add_row(f"  {run.name}", where, _clock(run.elapsed))
        else:
            left.append(expected)
    remaining = max([sum(left) / jobs, *left]) if left else 0.0
    total = f"  {done} of {len(runs)} lessons, {_clock(elapsed)} so far"
    return Group(lines, total + (f", about {_clock(remaining)} left" if left else ""))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
