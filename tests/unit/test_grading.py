"""`course check` on small notebooks: what a learner reads, and the exit status."""

import io

import nbformat
import pytest
from rich.console import Console

from minillm.course.grading import NOT_STARTED, PASSED, TO_FIX, check, grade

TEST = "assert double(3) == 6, 'you squared it' if double(3) == 9 else 'not doubled'"


def notebook(path, *exercises):
    """Write a notebook of (name, learner's code, test code) exercises worth two points each."""
    nb = nbformat.v4.new_notebook()
    for name, solution, test in exercises:
        nb.cells.append(nbformat.v4.new_markdown_cell(f"## {name.title()} · ●○○ · 5 minutes"))
        for source, grade_id, is_test in ((solution, name, False), (test, f"test_{name}", True)):
            cell = nbformat.v4.new_code_cell(source)
            cell.metadata["nbgrader"] = {
                "grade_id": grade_id,
                "grade": is_test,
                "solution": not is_test,
                "locked": is_test,
                "task": False,
                "schema_version": 3,
            }
            if is_test:
                cell.metadata["nbgrader"]["points"] = 2
            nb.cells.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def double(body):
    return ("double", f"def double(x):\n    {body}", TEST)


def test_each_state_of_an_exercise_gets_its_own_row(tmp_path):
    path = notebook(
        tmp_path / "work.ipynb",
        double("return 2 * x"),
        ("square", "def square(x):\n    raise NotImplementedError()", "assert square(3) == 9"),
        ("half", "def half(x):\n    return 2 * x", "assert half(4) == 2, 'you doubled it'"),
        ("third", "def third(x)\n    return x / 3", "assert third(3) == 1"),
        ("tenth", "answer = undefined / 10", "assert answer == 1"),
        ("judge", "raise NotImplementedError()", "assert judgement == 'yes'"),
    )
    before = path.read_bytes()
    rows = grade(path)
    assert [row.status for row in rows] == [
        *(PASSED, NOT_STARTED, TO_FIX),
        *(TO_FIX, TO_FIX, NOT_STARTED),
    ]
    assert rows[2].message == "you doubled it"
    assert rows[3].message.startswith("SyntaxError: expected ':'")
    assert rows[4].message == "NameError: name 'undefined' is not defined"
    assert [row.earned for row in rows] == [2, 0, 0, 0, 0, 0]
    assert {row.possible for row in rows} == {2}
    assert path.read_bytes() == before


def test_table_names_the_mistake_and_totals_the_points(tmp_path):
    notebook(tmp_path / "good" / "good.ipynb", double("return 2 * x"))
    notebook(tmp_path / "wrong" / "wrong.ipynb", double("return x * x"))
    text = io.StringIO()
    status = check(tmp_path, console=Console(file=text, width=80))
    assert status == 1
    assert "✗ you squared it" in text.getvalue()
    assert "1 of 1 passed" in text.getvalue()
    assert "2 / 2" in text.getvalue() and "0 / 2" in text.getvalue()
    assert check(tmp_path / "good" / "good.ipynb", console=Console(file=text)) == 0


def test_endless_loop_is_stopped_and_the_next_exercise_still_runs(tmp_path):
    endless = ("endless", "def endless():\n    while True: pass", "endless()")
    rows = grade(notebook(tmp_path / "work.ipynb", endless, double("return 2 * x")), timeout=2)
    assert rows[0].message == "stopped after 2 s: does a loop never end?"
    assert rows[1].status == PASSED


def test_dead_kernel_is_reported(tmp_path):
    dead = ("dead", "import os\nos._exit(1)", "pass")
    rows = grade(notebook(tmp_path / "work.ipynb", double("return 2 * x"), dead))
    assert rows[0].status == PASSED
    assert rows[1].status == TO_FIX and "died" in rows[1].message


@pytest.mark.parametrize("name", ["missing", "missing.ipynb", "notes.txt", "."])
def test_nothing_to_check_says_what_to_give(tmp_path, name):
    (tmp_path / "notes.txt").write_text("not a notebook")
    text = io.StringIO()
    assert check(tmp_path / name, console=Console(file=text, width=200)) == 2
    assert "give a notebook or a folder" in text.getvalue()


def test_removed_test_cell_does_not_pass(tmp_path):
    path = notebook(tmp_path / "work.ipynb", double("return 2 * x"))
    nb = nbformat.read(path, as_version=4)
    del nb.cells[-1]
    nbformat.write(nb, path)
    (row,) = grade(path)
    assert row.status == TO_FIX and "fresh copy" in row.message


@pytest.mark.parametrize(("content", "words"), [("{", "damaged"), ("", "no exercises")])
def test_file_without_exercises_is_refused(tmp_path, content, words):
    path = notebook(tmp_path / "work.ipynb")
    path.write_text(content or path.read_text())
    text = io.StringIO()
    assert check(path, console=Console(file=text, width=300)) == 2
    assert words in text.getvalue()
