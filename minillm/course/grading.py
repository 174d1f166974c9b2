"""`python -m minillm.course check exercises/NN_topic`: a learner's score, without a teacher.

The notebook runs in a kernel of its own, top to bottom, past any error; what each exercise's
test cell answered becomes one row of a table. The learner's file is only read.
"""

from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minillm.course.exercises import Exercise, find_exercises, points

PASSED, NOT_STARTED, TO_FIX = "✓ passed", "· not started", "✗"


@dataclass(frozen=True)
class Result:
    """What one exercise earned; `message` names the mistake when there is one."""

    exercise: Exercise
    status: str  # PASSED, NOT_STARTED or TO_FIX
    message: str
    earned: float
    possible: float


def check(path: str | Path, *, timeout: int = 300, console: Console | None = None) -> int:
    """Run one exercise notebook, or all in a folder, and print the score of each.

    Args:
        path: an .ipynb file or a folder that holds some.
        timeout: seconds a single cell may take before it is stopped.

    Returns:
        An exit status: 0 when everything passed, 1 when something is left to do, 2 when there is
        nothing to check at `path`.
    """
    console = console or Console()
    notebooks = _notebooks(Path(path))
    if not notebooks:
        example = "exercises/04_attention_to_transformer"
        console.print(
            f"{path}: no notebook there; give a notebook or a folder such as {example}",
            markup=False,
            soft_wrap=True,
        )
        return 2
    complete = True
    for notebook in notebooks:
        try:
            with console.status(f"running {escape(str(notebook))}"):
                results = grade(notebook, timeout=timeout)
        except ValueError as error:
            console.print(str(error), markup=False, soft_wrap=True)
            return 2
        _print(console, notebook, results)
        complete &= all(result.status == PASSED for result in results)
    return 0 if complete else 1


def grade(path: Path, *, timeout: int = 300) -> list[Result]:
    """Run the notebook at `path` and judge each of its exercises.

    Raises:
        ValueError: the file is not a notebook, or has no exercises.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is damaged ({error}); start from a fresh copy") from error
    if not find_exercises(notebook):
        raise ValueError(f"{path} has no exercises; give one from the folder exercises/")
    for cell in notebook.cells:
        if cell.cell_type == "code":  # nothing left over from an earlier run may count
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=timeout,
        interrupt_on_timeout=True,
        allow_errors=True,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    died = False
    try:
        client.execute()
    except DeadKernelError:
        died = True
    return [_judge(notebook, exercise, died, timeout) for exercise in find_exercises(notebook)]


def _judge(notebook, exercise: Exercise, died: bool, timeout: int) -> Result:
    possible = points(notebook, exercise)

    def result(status: str, message: str = "", earned: float = 0) -> Result:
        return Result(exercise, status, message, earned, possible)

    if not exercise.tests:
        return result(TO_FIX, "its test cell is missing; take the exercise from a fresh copy")
    earned = 0.0
    for index in (exercise.solution, *exercise.tests, *exercise.hidden):
        cell = notebook.cells[index]
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors and errors[0].ename == "NotImplementedError":
            return result(NOT_STARTED)
        if errors:
            return result(TO_FIX, _message(errors[0], timeout), earned)
        if died and cell.execution_count is None:
            return result(TO_FIX, "not run: Python itself died before it (out of memory?)", earned)
        earned += cell.metadata["nbgrader"].get("points", 0)
    return result(PASSED, earned=earned)


def _message(error, timeout: int) -> str:
    if error.ename == "AssertionError":
        return error.evalue or "a test failed"
    if error.ename == "KeyboardInterrupt":
        return f"stopped after {timeout} s: does a loop never end?"
    return f"{error.ename}: {error.evalue}"


def _notebooks(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.rglob("*.ipynb"))
        return [file for file in found if ".ipynb_checkpoints" not in file.parts]
    return [path] if path.suffix == ".ipynb" and path.exists() else []


def _print(console: Console, path: Path, results: list[Result]) -> None:
    table = Table(title=path.stem, title_justify="left", show_footer=True, show_lines=True)
    earned = sum(result.earned for result in results)
    possible = sum(result.possible for result in results)
    passed = sum(result.status == PASSED for result in results)
    table.add_column("Exercise", f"{passed} of {len(results)} passed", ratio=2)
    table.add_column("Result", ratio=3)
    table.add_column("Points", f"{earned:g} / {possible:g}", justify="right", no_wrap=True)
    style = {PASSED: "green", NOT_STARTED: "dim", TO_FIX: "red"}
    for result in results:
        line = f"{result.status} {result.message}".strip()
        table.add_row(
            escape(result.exercise.title),
            f"[{style[result.status]}]{escape(line)}[/]",
            f"{result.earned:g} / {result.possible:g}",
        )
    console.print(table)
