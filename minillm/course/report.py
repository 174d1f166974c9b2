"""Two ways to publish what a run measured: `build/report.html` and the README's claims table."""

import html
import json
import re
from pathlib import Path

import nbformat

from minillm.course.claims import Record, Table, number
from minillm.course.outcome import Result, read_results

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
        padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid #8884; text-align: right;
          vertical-align: top }}
th:first-child, td:first-child, .claims th:nth-child(2), .claims th:last-child {{
  text-align: left }}
pre {{ white-space: pre-wrap; border-left: 3px solid #D55E00; padding: .5rem 1rem }}
img {{ max-width: 100%; margin: .5rem 0 }}
.passed {{ color: #009E73 }} .failed, .stopped {{ color: #D55E00 }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_report(build: Path) -> Path:
    """Write `build/report.html`, one file that needs no other, from the last run; return it."""
    run = json.loads((build / "results.json").read_text("utf-8"))
    results = read_results(build)
    sections = [_summary(run, results)] + [_section(build, result) for result in results]
    page = _PAGE.format(title="minillm: what the course measured", body="\n".join(sections))
    report = build / "report.html"
    report.write_text(page, "utf-8")
    return report


def markdown_table(results: list[Result]) -> str:
    """The claims of all lessons as one Markdown table, as the README shows it."""
    lines = ["| | Claim | Measured | Expected | Source |", "|---|---|---:|---:|---|"]
    for result in results:
        if result.claims:
            lines.append(f"| | **{result.lesson}** | | | |")
        lines += [_markdown_row(record) for record in result.claims]
    return "\n".join(lines)


def write_readme(readme: Path, results: list[Result]) -> None:
    """Put the table between the README's markers.

    Raises:
        ValueError: the README has no markers.
    """
    before, _, after = _split(readme)
    readme.write_text(f"{before}{BEGIN}\n{markdown_table(results)}\n{END}{after}", "utf-8")


def drift(readme: Path, results: list[Result]) -> list[str]:
    """Rows that the README lacks ("+ …") or has and should not ("- …"); measured values aside.

    Values differ from one machine to the next; names, sentences, thresholds and sources do not.
    """
    stands, should = (
        [_without_value(line) for line in text.strip().splitlines()]
        for text in (_split(readme)[1], markdown_table(results))
    )
    missing = [f"+ {row}" for row in should if row not in stands]
    stale = [f"- {row}" for row in stands if row not in should]
    return missing + stale


def figures(notebook: nbformat.NotebookNode) -> list[str]:
    """The pictures in a notebook's outputs, as <img> elements that carry their own data."""
    images = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            images += re.findall(r'<img\b[^>]*src="data:[^>]*>', data.get("text/html", ""))
            if "image/png" in data:
                png = data["image/png"].replace("\n", "")
                images.append(f'<img alt="" src="data:image/png;base64,{png}">')
    return images


def _split(readme: Path) -> tuple[str, str, str]:
    text = readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme.name}: expected one {BEGIN} and one {END} around the table")
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    return before, table, after


def _markdown_row(record: Record) -> str:
    says, source = (text.replace("|", "\\|") for text in (record.says, record.source))
    claim = f"{says} <br><sub>`{record.name}`</sub>"
    return f"| {record.mark} | {claim} | {number(record.value)} | {record.bound} | {source} |"


def _without_value(row: str) -> str:
    cells = re.split(r"(?<!\\)\|", row)
    return "|".join(cells[2:3] + cells[4:])


def _summary(run: dict, results: list[Result]) -> str:
    machine = run["machine"]
    settings = ", ".join(f"{name} = {value}" for name, value in run["parameters"].items())
    rows = "".join(
        f'<tr><td><a href="#{r.lesson}">{r.lesson}</a></td>'
        f'<td class="{r.status}">{r.status}</td><td>{r.seconds:.1f} s</td>'
        f"<td>{r.peak_bytes / 1e6:,.0f} MB</td>"
        f"<td>{sum(c.op is not None and c.holds for c in r.claims)} of "
        f"{sum(c.op is not None for c in r.claims)}</td></tr>"
        for r in results
    )
    return (
        f"<p>{html.escape(machine['system'])}, Python {machine['python']}, "
        f"{machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB; "
        f"{html.escape(settings)}; {run['jobs']} at a time; {run['seconds']:.0f} s in all.</p>"
        "<table><tr><th>Lesson</th><th>Result</th><th>Time</th><th>Peak memory</th>"
        f"<th>Claims held</th></tr>{rows}</table>"
    )


def _section(build: Path, result: Result) -> str:
    notebook = nbformat.read(build / "notebooks" / f"{result.lesson}.ipynb", as_version=4)
    error = f"<pre>{html.escape(result.error)}</pre>" if result.error else ""
    table = Table(result.claims)._repr_html_() if result.claims else ""
    images = "\n".join(figures(notebook))
    return f'<h2 id="{result.lesson}">{result.lesson}</h2>\n{error}{table}\n{images}'
