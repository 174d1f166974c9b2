"""Every lesson runs in a kernel of its own, its claims hold, and it stays within its limits.

The lessons run once, two at a time as `make course` runs them; each test then looks at one result.
Time is written to build/report.html and not asserted: it is the machine's as much as the lesson's.
"""

from collections import Counter
from pathlib import Path

import nbformat
import pytest

from minillm.course import report, runner

ROOT = runner.root()
LESSONS = runner.find_lessons()
PARAMETERS = {"scale": "lesson", "device": "auto", "seed": 0}
WITH_SMOLLM2 = 3.0e9  # bytes; a lesson that loads the real model may hold this much
WITHOUT = 2.0e9


@pytest.fixture(scope="session")
def results(pytestconfig, tmp_path_factory):
    """What running all lessons gave, by lesson. Progress is shown: this takes minutes."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    ipython = tmp_path_factory.mktemp("ipython")
    startup = ipython / "profile_default" / "startup"
    startup.mkdir(parents=True)
    here = str(Path(__file__).parent)
    (startup / "0.py").write_text(f"import sys; sys.path.insert(0, {here!r}); import widget_ends")
    with capture.global_and_fixture_disabled(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(ipython))
        finished = runner.run(LESSONS, PARAMETERS, build=ROOT / "build")
    report.write_report(ROOT / "build")
    return {result.lesson: result for result in finished}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson(results, lesson):
    result = results[lesson.stem]
    assert result.passed, f"{result.lesson}: {result.error}"
    claims = [record for record in result.claims if record.op is not None]
    assert len(claims) >= 2, "a lesson makes claims"
    limit = WITH_SMOLLM2 if "smollm2" in _code(lesson) else WITHOUT
    assert result.peak_bytes <= limit, f"{result.peak_bytes / 1e9:.2f} GB"


def test_claim_names_are_unique_in_the_course(results):
    names = Counter(record.name for result in results.values() for record in result.claims)
    assert [name for name, count in names.items() if count > 1] == []


def test_the_readme_shows_the_claims_that_the_lessons_make(results):
    drift = report.drift(ROOT / "README.md", list(results.values()))
    assert not drift, "run `make course`, then `python -m minillm.course claims --write`:\n" + (
        "\n".join(drift)
    )


def _code(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")
