"""The repository keeps its own promises: one source of dependencies, clean code and notebooks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from minillm.course.environment import environment_yml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def tracked(*patterns: str) -> list[Path]:
    """Files under version control that stand in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, check=True
    )
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


NOTEBOOKS = [str(path.relative_to(ROOT)) for path in tracked("*.ipynb")]
LESSONS = [name for name in NOTEBOOKS if name.startswith("notebooks/")]


def test_environment_yml_is_generated_from_pyproject():
    generated = environment_yml(ROOT / "pyproject.toml")
    assert (ROOT / "environment.yml").read_text("utf-8") == generated, (
        "run `python -m minillm.course environment`"
    )


def test_environment_yml_names_every_dependency_and_a_python_that_repo2docker_reads():
    content = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *packages, pip = content["dependencies"]
    assert packages[0] == "python=3.12"
    assert pip == {"pip": ["-e ."]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert len(packages) == 1 + len(project["dependencies"])
    # No conda client solves here; this is the shape of a match specification, no more.
    assert all(re.fullmatch(r"[a-z0-9_-]+(=|>=)[\d.]+", package) for package in packages)


def test_constraints_pin_every_direct_dependency_inside_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in requirements:
        name, lowest = requirement.split(">=")
        if name != "pip":  # whichever the machine has will do
            assert _version(pins.pop(name)) >= _version(lowest), requirement
    assert not pins, "constraints.txt pins what pyproject.toml does not ask for"


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["lint-imports"]],
    ids=["ruff check", "ruff format", "import contracts"],
)
def test_the_tree_is_clean(command):
    program = [str(BIN / command[0]), *command[1:]]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_without_outputs(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    assert "version" not in notebook.metadata.get("language_info", {})
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert not {"papermill", "execution"} & set(cell.metadata)


@pytest.mark.parametrize("name", LESSONS)
def test_lessons_have_the_parameters_cell(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    code = "\n".join(line.split("#")[0].rstrip() for line in cell.source.strip().splitlines())
    assert code == 'scale = "lesson"\ndevice = "auto"\nseed = 0'


def test_no_two_lessons_share_a_number():
    numbers = [Path(name).stem[:2] for name in LESSONS]
    assert len(set(numbers)) == len(numbers) and numbers[0] == "00"


def test_the_readme_map_shows_every_lesson_and_what_it_asks_for():
    """The lessons that come before it, its minutes, and those of its exercises."""
    row = r"^\| \d\d \| \[.*\]\((.*)\) \| [^|]+ \| [^|]+ \| ([\d, ]*) \| (\d+)(?: \+ (\d+))? \|$"
    rows = re.findall(row, (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [lesson for lesson, *_ in rows] == LESSONS
    for lesson, after, minutes, practice in rows:
        promise = " ".join(_prose(ROOT / lesson)[0].split())
        stated, needs = re.search(r"About (\d+) minutes\. You need ([^.;]*)", promise).groups()
        assert (minutes, after.strip()) == (stated, ", ".join(sorted(re.findall(r"\d\d", needs))))
        solutions = tracked(f"solutions/{Path(lesson).stem}/*.ipynb")
        prose = "\n".join(text for path in solutions for text in _prose(path))
        exercises = sum(int(each) for each in re.findall(r"· (\d+) minutes", prose))
        assert exercises == int(practice or 0), lesson


def test_no_tracked_file_names_a_folder_of_one_machine():
    folders = ("root", "home", "Users", "work", "tmp")
    path = re.compile(rf"(?<![\w.$}}/-])/(?:{'|'.join(folders)})/\w")
    found = []
    for file in tracked():
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a checkpoint or a picture
        found += [f"{file.relative_to(ROOT)}: {hit.group()}" for hit in path.finditer(text)]
    assert not found


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_inside_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_help_lists_every_public_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("course", "test", "lab", "bench", "help"):
        assert re.search(rf"^  make {target} +\w", done.stdout, re.MULTILINE)


def _prose(notebook: Path) -> list[str]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
