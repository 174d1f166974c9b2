"""Exercise notebooks: how they are laid out, and how the learner's copy is made from the solution.

`solutions/NN_topic/NN_topic.ipynb` is the master. nbgrader's cell metadata says what each cell is:
an exercise NAME has one cell to be filled in (`grade_id` NAME), a locked test cell (`test_NAME`)
and a hidden one (`hidden_NAME`). `generate()` writes `exercises/`, which nobody edits by hand.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Exercise:
    """One exercise, as positions in its notebook's list of cells."""

    name: str
    title: str  # the heading above it
    solution: int
    tests: tuple[int, ...]
    hidden: tuple[int, ...]


def find_exercises(notebook: nbformat.NotebookNode) -> list[Exercise]:
    """The exercises of a solution or of a learner's copy, in reading order."""
    places: dict[str, int] = {}
    for index, cell in enumerate(notebook.cells):
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id is not None and cell.cell_type == "code":
            places[grade_id] = index

    def positions(prefix: str, name: str) -> tuple[int, ...]:
        # A hidden test cell of a learner's copy is empty: nothing of it is left to run.
        index = places.get(f"{prefix}_{name}")
        present = index is not None and notebook.cells[index].source.strip()
        return (index,) if present else ()

    return [
        Exercise(
            name,
            _heading_above(notebook, index) or name,
            index,
            positions("test", name),
            positions("hidden", name),
        )
        for name, index in places.items()
        if notebook.cells[index].metadata["nbgrader"].get("solution")
    ]


def points(notebook: nbformat.NotebookNode, exercise: Exercise) -> float:
    """What the tests present in this notebook are worth."""
    cells = exercise.tests + exercise.hidden
    return sum(notebook.cells[index].metadata["nbgrader"].get("points", 0) for index in cells)


def generate(
    names: Iterable[str] | None = None,
    *,
    repository: Path = REPOSITORY,
    into: Path | None = None,
) -> list[Path]:
    """Write the learner's copy of each solution; return the notebooks written.

    Args:
        names: lessons such as "04_attention_to_transformer"; all of `solutions/` when None.
        repository: the folder that holds `solutions/`.
        into: where to write; `exercises/` of the repository when None.

    Raises:
        ValueError: a name has no solution, or nbgrader is not installed.
        RuntimeError: nbgrader refused a notebook; its log says why.
    """
    known = sorted(path.parent.name for path in repository.glob("solutions/*/*.ipynb"))
    chosen = known if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"no solution named {name!r}: expected one of {', '.join(known)}")
    into = into or repository / "exercises"
    for name in chosen:
        _release(name, repository / "solutions", into)
    return [into / name / f"{name}.ipynb" for name in chosen]


def _release(name: str, solutions: Path, into: Path) -> None:
    try:
        from nbgrader.converters import GenerateAssignment
        from nbgrader.converters.base import NbGraderException
        from nbgrader.coursedir import CourseDirectory
        from traitlets.config import Config
    except ImportError as error:
        fix = "generating exercises needs nbgrader: pip install 'minillm[teach]'"
        raise ValueError(fix) from error
    # nbgrader wants one root for everything it writes, its own log and lock files included.
    with TemporaryDirectory() as root:
        config = Config()
        config.CourseDirectory.root = root
        config.CourseDirectory.source_directory = str(solutions.resolve())
        config.CourseDirectory.release_directory = str(into.resolve())
        config.CourseDirectory.assignment_id = name
        config.GenerateAssignment.no_database = True
        config.GenerateAssignment.force = True
        config.SaveCells.enabled = False  # no gradebook: nothing to record yet
        course = CourseDirectory(config=config)
        converter = GenerateAssignment(coursedir=course, config=config)
        converter.log.setLevel(logging.ERROR)
        try:
            converter.start()
        except (NbGraderException, SystemExit) as error:
            raise RuntimeError(f"nbgrader could not release {name}: see its log above") from error


def _heading_above(notebook: nbformat.NotebookNode, index: int) -> str | None:
    for cell in reversed(notebook.cells[:index]):
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            if headings:
                return headings[0].lstrip("# ")
    return None
