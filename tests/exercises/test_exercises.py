"""Every exercise: the solution passes, the stub does not, and wrong answers are named.

Notebook cells run in this process, in order, in one namespace. The wrong versions live in
`mutants/TOPIC.py`: MUTANTS maps an exercise to (text of the solution, replacement, pattern) where
the visible test must answer the wrong version with an AssertionError that matches the pattern.
"""

import linecache
import re
import runpy
from pathlib import Path

import matplotlib
import nbformat
import pytest

from minillm.course.exercises import REPOSITORY, Exercise, find_exercises, generate

matplotlib.use("Agg")

SOLUTIONS = {path.stem: path for path in sorted(REPOSITORY.glob("solutions/*/*.ipynb"))}
MASTERS = {name: nbformat.read(path, as_version=4) for name, path in SOLUTIONS.items()}
EXERCISES = [
    pytest.param(lesson, exercise, id=f"{lesson}-{exercise.name}")
    for lesson, notebook in MASTERS.items()
    for exercise in find_exercises(notebook)
]


def mutants_of(lesson: str) -> dict[str, list[tuple[str, str, str]]]:
    path = Path(__file__).parent / "mutants" / f"{lesson.split('_', 1)[1]}.py"
    return runpy.run_path(str(path))["MUTANTS"] if path.exists() else {}


MUTANTS = [
    pytest.param(lesson, exercise, mutant, id=f"{lesson}-{exercise.name}-{number}")
    for lesson, notebook in MASTERS.items()
    for exercise in find_exercises(notebook)
    for number, mutant in enumerate(mutants_of(lesson).get(exercise.name, ()), start=1)
]


def run_cell(source: str, label: str, namespace: dict) -> None:
    # Through linecache a traceback shows the line of the cell, not "<string>".
    linecache.cache[label] = (len(source), None, source.splitlines(keepends=True), label)
    exec(compile(source, label, "exec"), namespace)


def run_until(lesson: str, notebook, exercise: Exercise, replacement: str | None = None) -> dict:
    """Run all but test cells up to the exercise's own cell; return the namespace."""
    namespace = {"__name__": "__main__"}
    for index, cell in enumerate(notebook.cells[: exercise.solution + 1]):
        if cell.cell_type != "code" or cell.metadata.get("nbgrader", {}).get("grade"):
            continue
        last = index == exercise.solution and replacement is not None
        run_cell(replacement if last else cell.source, f"{lesson}[{index}]", namespace)
    return namespace


def given_cells(notebook, exercise: Exercise) -> list[int]:
    """Given code between the learner's cell and the last of its tests."""
    last = max(exercise.tests + exercise.hidden, default=exercise.solution)
    return [
        index
        for index in range(exercise.solution + 1, last)
        if notebook.cells[index].cell_type == "code"
        and "nbgrader" not in notebook.cells[index].metadata
    ]


def run_tests(lesson: str, notebook, exercise: Exercise, namespace: dict, hidden: bool) -> None:
    tests = exercise.tests + (exercise.hidden if hidden else ())
    for index in sorted([*given_cells(notebook, exercise), *tests]):
        run_cell(notebook.cells[index].source, f"{lesson}[{index}]", namespace)


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_solution_passes_visible_and_hidden_tests(lesson, exercise):
    namespace = run_until(lesson, MASTERS[lesson], exercise)
    run_tests(lesson, MASTERS[lesson], exercise, namespace, hidden=True)


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_untouched_stub_is_not_implemented(lesson, exercise):
    copy = nbformat.read(REPOSITORY / "exercises" / lesson / f"{lesson}.ipynb", as_version=4)
    stub = next(e for e in find_exercises(copy) if e.name == exercise.name)
    # The other exercises are taken as solved, so that this one is the first to stop.
    for other in find_exercises(copy):
        if other.name != exercise.name:
            copy.cells[other.solution].source = MASTERS[lesson].cells[other.solution].source
    with pytest.raises(NotImplementedError):
        namespace = run_until(lesson, copy, stub)
        run_tests(lesson, copy, stub, namespace, hidden=False)


@pytest.mark.parametrize("lesson", MASTERS)
def test_untouched_notebook_stops_at_its_first_stub(lesson):
    copy = nbformat.read(REPOSITORY / "exercises" / lesson / f"{lesson}.ipynb", as_version=4)
    first = find_exercises(copy)[0]
    namespace = {"__name__": "__main__"}
    for index, cell in enumerate(copy.cells):
        if cell.cell_type != "code":
            continue
        try:
            run_cell(cell.source, f"{lesson}[{index}]", namespace)
        except NotImplementedError:
            assert first.solution <= index <= max(first.tests), "stopped after the first exercise"
            return
    pytest.fail("the untouched notebook ran to its end")


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_exercise_is_complete(lesson, exercise):
    """Visible and hidden tests, points, difficulty, minutes, a hint, and three wrong versions."""
    notebook = MASTERS[lesson]
    assert exercise.tests, f"no cell tagged test_{exercise.name}"
    assert exercise.hidden, f"no cell tagged hidden_{exercise.name}"
    for index in exercise.tests + exercise.hidden:
        assert notebook.cells[index].metadata["nbgrader"]["points"] > 0
        assert notebook.cells[index].metadata["nbgrader"]["locked"]
    before = [e.solution for e in find_exercises(notebook) if e.solution < exercise.solution]
    text = "\n".join(
        cell.source
        for cell in notebook.cells[max(before, default=0) : exercise.solution]
        if cell.cell_type == "markdown"
    )
    for needed in (r"[●○]{3}", r"\bmin", r"<details>"):
        assert re.search(needed, text), f"the text above {exercise.name} lacks {needed}"
    mutants = mutants_of(lesson).get(exercise.name, ())
    assert len(mutants) >= 3, f"{exercise.name} has {len(mutants)} wrong versions; write three"


@pytest.mark.parametrize(("lesson", "exercise", "mutant"), MUTANTS)
def test_wrong_version_is_rejected_by_name(lesson, exercise, mutant):
    old, new, pattern = mutant
    notebook = MASTERS[lesson]
    source = notebook.cells[exercise.solution].source
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the solution"
    namespace = run_until(lesson, notebook, exercise, source.replace(old, new))
    with pytest.raises(AssertionError) as caught:
        run_tests(lesson, notebook, exercise, namespace, hidden=False)
    assert re.search(pattern, str(caught.value)), (
        f"rejected, but with {str(caught.value)!r}, which does not match {pattern!r}"
    )


@pytest.mark.parametrize("lesson", MASTERS)
def test_lesson_has_three_or_more_exercises_and_no_stray_mutants(lesson):
    names = {exercise.name for exercise in find_exercises(MASTERS[lesson])}
    assert len(names) >= 3
    assert set(mutants_of(lesson)) <= names


def test_exercises_are_what_regenerating_gives(tmp_path):
    generate(into=tmp_path)

    def contents(folder):
        return {
            path.relative_to(folder).as_posix(): path.read_text()
            for path in folder.rglob("*.ipynb")
            if ".ipynb_checkpoints" not in path.parts
        }

    expected, actual = contents(tmp_path), contents(REPOSITORY / "exercises")
    assert actual.keys() == expected.keys()
    stale = [name for name in expected if actual[name] != expected[name]]
    assert not stale, f"run `python -m minillm.course exercises`: {stale} differ"


@pytest.mark.parametrize("lesson", MASTERS)
def test_learners_copy_holds_no_solution_and_no_hidden_test(lesson):
    copy = nbformat.read(REPOSITORY / "exercises" / lesson / f"{lesson}.ipynb", as_version=4)
    released = "\n".join(cell.source for cell in copy.cells)
    secrets = r"### BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)### END"
    for cell in MASTERS[lesson].cells:
        for _, secret in re.findall(secrets, cell.source, re.DOTALL):
            assert secret.strip() not in released
    assert not re.search("(BEGIN|END) (SOLUTION|HIDDEN)", released)


def test_there_are_exercises():
    assert EXERCISES, "no solutions/*/*.ipynb found: nothing was tested"
