"""What running a lesson gave: its claims, its errors, its cost; kept in `build/results.json`."""

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat
import psutil

from minillm.course.claims import MIME, Record

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Result:
    """What running one lesson gave. `peak_bytes` covers the kernel and its child processes."""

    lesson: str
    status: str  # "passed", "failed" or "stopped"
    seconds: float
    peak_bytes: int
    error: str | None = None
    claims: list[Record] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def to_dict(self) -> dict:
        return asdict(self) | {"claims": [record.to_dict() for record in self.claims]}

    @classmethod
    def from_dict(cls, data: dict) -> "Result":
        return cls(**data | {"claims": [Record.from_dict(record) for record in data["claims"]]})


def read_results(build: Path) -> list[Result]:
    """What the last run left in `build/results.json`; nothing if there was none."""
    file = build / "results.json"
    if not file.exists():
        return []
    return [Result.from_dict(lesson) for lesson in json.loads(file.read_text("utf-8"))["lessons"]]


def write_results(
    build: Path, results: list[Result], parameters: dict, jobs: int, seconds: float
) -> None:
    """Replace `build/results.json` in one step, so that an interrupted run leaves a whole file."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    content = {
        "parameters": parameters,
        "jobs": jobs,
        "seconds": seconds,
        "machine": machine,
        "lessons": [result.to_dict() for result in results],
    }
    build.mkdir(parents=True, exist_ok=True)
    temporary = build / "results.json.part"
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, build / "results.json")


def read_claims(notebook: nbformat.NotebookNode) -> list[Record]:
    """The claims and findings in a notebook's outputs, in order; a later one of a name wins."""
    records = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if MIME in output.get("data", {}):
                record = Record.from_dict(output["data"][MIME])
                records[record.name] = record
    return list(records.values())


def failed_claim(notebook: nbformat.NotebookNode) -> str | None:
    """The first claim that does not hold, even where the notebook swallowed the error."""
    for record in read_claims(notebook):
        if not record.holds:
            return f"a claim does not hold: {record}"
    return None


def widget_error(notebook: nbformat.NotebookNode) -> str | None:
    """The first exception raised inside a widget's callback, with the cell that shows it."""
    saved = notebook.metadata.get("widgets", {})
    models = saved.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    errors = {
        name: output
        for name, model in models.items()
        for output in model["state"].get("outputs", ())
        if model["model_name"] == "OutputModel" and output["output_type"] == "error"
    }
    for name, output in errors.items():
        what = f"in a widget's callback, {output['ename']}: {plain(output['evalue'])}"
        for index, cell in enumerate(notebook.cells):
            if name in _widgets_of(cell, models):
                return f"{place(notebook, index)}: {what}"
        return what
    return None


def plain(text: str) -> str:
    """Text without the terminal colours that tracebacks carry."""
    return _ANSI.sub("", text).strip()


def place(notebook: nbformat.NotebookNode, index: int) -> str:
    """Such as “cell 12, under "Causal mask"”, counted from 1 in the notebook a reader opens."""
    above = notebook.cells[: index + 1]
    injected = sum("injected-parameters" in cell.metadata.get("tags", ()) for cell in above)
    where = f"cell {index + 1 - injected}"
    for cell in reversed(above):
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if re.match("#+ ", line)]
            if headings:
                return f'{where}, under "{headings[-1].lstrip("# ")}"'
    return where


def _widgets_of(cell, models: dict) -> set[str]:
    """Ids of the widget models a cell's outputs show, with everything inside them."""
    view = "application/vnd.jupyter.widget-view+json"
    todo = [
        o["data"][view]["model_id"] for o in cell.get("outputs", ()) if view in o.get("data", {})
    ]
    found = set()
    while todo:
        name = todo.pop()
        if name in models and name not in found:
            found.add(name)
            children = models[name]["state"].get("children", ())
            todo += [child.removeprefix("IPY_MODEL_") for child in children]
    return found
