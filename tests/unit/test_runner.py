"""The runner on notebooks made to go wrong: each must fail with words that say where and why."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from rich.console import Console

from minillm.course import meter, outcome, report, runner
from minillm.course.__main__ import main
from minillm.data import assets

PARAMETERS = 'scale = "lesson"\ndevice = "auto"\nseed = 0'
CLAIM = (
    "from minillm.course import claim\n"
    "claim('tiny.seed', seed, '<', 10, says='The seed is small', source='Nobody 2026, §1')"
)


@pytest.fixture
def lesson(tmp_path):
    """Write notebooks/NN_name.ipynb from code cells, each under a heading of its own."""

    def write(name, *codes, parameters=PARAMETERS):
        cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        for number, code in enumerate(codes, start=1):
            cells += [
                nbformat.v4.new_markdown_cell(f"# Step {number}\n\nSome words."),
                nbformat.v4.new_code_cell(code),
            ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write


@pytest.fixture
def run(tmp_path):
    """Run lessons quietly into tmp_path/build."""

    def quiet(*paths, parameters=None, **options):
        options = {"build": tmp_path / "build", "console": Console(quiet=True)} | options
        return runner.run(paths, parameters or {}, **options)

    return quiet


def test_two_lessons_pass_and_leave_notebooks_results_and_a_report(lesson, run, tmp_path):
    picture = (
        "from IPython.display import HTML, display\n"
        'display(HTML(\'<img alt="a dot" src="data:image/png;base64,AAAA">\'))\n'
        "display(HTML('<img src=\"https://example.org/not-ours.png\">'))"
    )
    paths = lesson("00_first", CLAIM, picture), lesson("01_second", CLAIM)
    results = run(*paths, parameters={"seed": 3})
    assert [r.status for r in results] == ["passed", "passed"]
    assert results[0].claims[0].value == 3.0  # the parameter reached the notebook
    assert results[0].peak_bytes > 20e6 and results[0].seconds > 0
    assert outcome.read_results(tmp_path / "build") == results

    html = report.write_report(tmp_path / "build").read_text("utf-8")
    assert "The seed is small" in html and 'alt="a dot"' in html
    assert "example.org" not in html  # self-contained


def test_each_of_two_kernels_computes_on_one_thread(lesson, run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one_thread = "import os\nassert os.environ['OMP_NUM_THREADS'] == '1'"
    (result,) = run(lesson("00_threads", one_thread), jobs=2)
    assert result.passed, result.error


def test_a_failing_cell_is_named_with_its_heading_and_does_not_stop_the_others(lesson, run):
    bad = lesson("00_bad", "x = 1", "x / 0")
    failed, passed = run(bad, lesson("01_good", CLAIM))
    # Two markdown cells and the parameters stand above it; papermill's own cell is not counted.
    assert failed.error == 'cell 5, under "Step 2": ZeroDivisionError: division by zero'
    assert failed.status == "failed" and passed.status == "passed"


def test_the_notebook_of_a_failed_lesson_is_kept(lesson, run, tmp_path):
    run(lesson("00_bad", "print('before')\n1 / 0"))
    notebook = nbformat.read(tmp_path / "build/notebooks/00_bad.ipynb", as_version=4)
    printed, error = notebook.cells[-1].outputs
    assert printed.text == "before\n" and error.ename == "ZeroDivisionError"


def test_a_claim_that_fails_fails_the_lesson_even_when_the_notebook_swallows_it(lesson, run):
    swallowed = f"try:\n    seed = 11\n    {CLAIM.splitlines()[0]}\n    {CLAIM.splitlines()[1]}\n"
    (result,) = run(lesson("00_swallowed", swallowed + "except AssertionError: pass"))
    assert result.status == "failed"
    assert "a claim does not hold: ✗ tiny.seed: 11 (< 10)" in result.error


def test_a_hanging_cell_is_stopped(lesson, run):
    hang = "import threading\nthreading.Event().wait()"
    (result,) = run(lesson("00_hang", hang), cell_timeout=2)
    assert result.error.startswith('cell 3, under "Step 1": still running after 2 s')


def test_a_dead_kernel_is_noticed(lesson, run):
    (result,) = run(lesson("00_dead", "import os\nos._exit(1)"))
    assert result.error.startswith('cell 3, under "Step 1": the kernel died')


def test_an_exception_inside_an_interact_callback_fails(lesson, run):
    callback = (
        "from ipywidgets import interact\n"
        "@interact(n=(0, 3))\n"
        "def draw(n=0):\n"
        "    raise KeyError('no such row')"
    )
    (result,) = run(lesson("00_widget", "x = 1", callback))
    expected = """cell 5, under "Step 2": in a widget's callback, KeyError: 'no such row'"""
    assert result.error == expected


def test_a_working_interact_passes(lesson, run):
    callback = "from ipywidgets import interact\n@interact(n=(0, 3))\ndef draw(n=0):\n    print(n)"
    (result,) = run(lesson("00_widget", callback))
    assert result.passed, result.error


def test_widget_outputs_are_collected_without_echo_to_the_kernel(lesson, run, tmp_path):
    """The echo could swallow the wake-up for the cell's reply: a hang, once in many cells."""
    show = "from ipywidgets import interactive\nw = interactive(lambda n: print(n), n=(0, 3))\nw"
    (result,) = run(lesson("00_widget", show, "assert w.out.outputs == ()"))
    assert result.passed, result.error
    saved = nbformat.read(tmp_path / "build/notebooks/00_widget.ipynb", as_version=4)
    (state,) = saved.metadata.widgets.values()
    outputs = [m["state"]["outputs"] for m in state["state"].values() if "outputs" in m["state"]]
    assert [output["text"] for output in outputs[0]] == ["1\n"]


def test_a_parameter_no_lesson_has_is_refused_before_anything_runs(lesson, run, tmp_path):
    path = lesson("00_old", "print(1)", parameters='scale = "lesson"')
    with pytest.raises(ValueError, match="00_old has no parameter 'seed': it has scale"):
        run(path, parameters={"seed": 1})
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "77"], "unknown lesson '77': expected 00, or a full name"),
        (["run", "0.5"], "unknown lesson '0.5'"),
        (["run", ""], "unknown lesson ''"),
        (["run", "elsewhere/00_only.ipynb"], "unknown lesson 'elsewhere/00_only.ipynb'"),
        (["run", "--scale", "huge"], "unknown scale 'huge': expected lesson or full"),
        (["run", "--device", "abacus"], "device='abacus': expected"),
        (["run", "--device", "cpu:x"], "device='cpu:x': expected"),
        (["run", "--device", "cuda:99"], "device='cuda:99' is not available"),
        (["run", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["run", "--seed", "-1"], "seed=-1"),
        (["run", "--jobs", "0"], "jobs=0"),
        (["run", "--depth", "3"], "unrecognized arguments: --depth"),
        (["claims"], "nothing has run yet"),
        (["fetch"], "fetch what?"),
        (["fetch", "encarta"], "unknown asset 'encarta'"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2_and_runs_nothing(
    arguments, message, lesson, tmp_path, monkeypatch, capsys
):
    lesson("00_only", CLAIM)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    words = capsys.readouterr().err
    assert message in words and words.count("\n") == 1
    assert not (tmp_path / "build").exists()


def test_the_command_line_runs_shows_and_publishes_claims(lesson, tmp_path, monkeypatch, capsys):
    lesson("00_only", CLAIM)
    monkeypatch.chdir(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"Before\n{report.BEGIN}\n{report.END}\nAfter\n")
    assert main(["run", "0", "--seed", "2"]) == 0
    words = capsys.readouterr().out
    assert "1 of 1 lessons" in words and "✓ tiny.seed: 2 (< 10)" in words
    assert main(["claims", "--write"]) == 0
    assert "The seed is small" in readme.read_text() and readme.read_text().endswith("After\n")


def test_a_failed_lesson_gives_status_1_and_keeps_the_readme(lesson, tmp_path, monkeypatch, capsys):
    lesson("00_only", "assert False, 'no luck'")
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == 1
    assert 'cell 3, under "Step 1": AssertionError: no luck' in capsys.readouterr().out
    assert main(["claims", "--write"]) == 2
    refused = capsys.readouterr().err
    assert refused == "error: the README needs a whole run; not passed: 00_only\n"


def test_the_exit_status_reaches_the_shell(tmp_path):
    (tmp_path / "notebooks").mkdir()
    line = [sys.executable, "-m", "minillm.course", "run", "77"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: unknown lesson '77': there are no lessons here\n"


def test_fetch_lists_every_asset_with_its_licence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path))  # an empty cache
    assert main(["fetch", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(assets.ASSETS)
    assert "92.9 MB  -" in lines[0] and "Apache-2.0" in lines[0]


@pytest.mark.parametrize("name", ["4", "04", "04_heads", "notebooks/04_heads.ipynb"])
def test_lessons_are_found_by_number_or_name(name, lesson, tmp_path):
    paths = lesson("04_heads", ""), lesson("10_tails", "")
    assert runner.find_lessons([name], tmp_path) == [paths[0]]
    assert runner.find_lessons([], tmp_path) == list(paths)


def test_interrupting_kills_the_kernels_and_keeps_what_is_finished(lesson, tmp_path):
    lesson("00_quick", CLAIM)
    hang = "import os, pathlib, threading\n"
    hang += "pathlib.Path('pid').write_text(str(os.getpid()))\nthreading.Event().wait()"
    lesson("01_slow", hang)
    line = [sys.executable, "-m", "minillm.course", "run", "--jobs", "1"]
    course = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    pid = _wait_for_pid(tmp_path / "notebooks" / "pid", course)
    family = [psutil.Process(course.pid), psutil.Process(pid)]
    course.send_signal(signal.SIGINT)
    try:
        printed, _ = course.communicate(timeout=30)
        assert course.returncode == 130 and "1 finished lessons" in printed
        assert not psutil.pid_exists(pid)
    finally:  # a kernel that waits for ever must end with the test, whatever went wrong
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert [r.lesson for r in outcome.read_results(tmp_path / "build")] == ["00_quick"]


def test_memory_is_measured_over_the_whole_family_and_the_family_is_killed():
    code = "x = bytearray(200_000_000); print(flush=True); input()"
    for _ in range(2):  # a child that has a child
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
    process.stdout.readline()  # the grandchild holds its memory now
    _, grandchild = psutil.Process(process.pid).children(recursive=True)
    gauge = meter.MemoryMeter(process.pid, interval=0.01)
    _wait_until(lambda: gauge.peak_bytes > 0)
    gauge.stop()
    gauge.kill()
    process.communicate()
    assert gauge.peak_bytes > 200e6
    _wait_until(lambda: not grandchild.is_running() or grandchild.status() == "zombie")


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the system does not tell what is shared")
def test_what_processes_share_is_counted_once():
    code = """
import os
x = bytearray(b"x" * 200_000_000)
if os.fork():
    os.wait()
else:
    print(flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.readline()  # now there are two of them
        gauge = meter.MemoryMeter(process.pid, interval=0.01)
        _wait_until(lambda: gauge.peak_bytes > 200e6)
        time.sleep(0.2)
        gauge.stop()
        process.communicate(b"\n")
    assert gauge.peak_bytes < 300e6


def test_where_the_system_does_not_tell_all_is_added_up(monkeypatch):
    monkeypatch.setattr(psutil, "LINUX", False)
    member = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=30))
    monkeypatch.setattr(meter.MemoryMeter, "_family", lambda self: [member] * 3)
    gauge = meter.MemoryMeter(os.getpid(), interval=0.01)
    _wait_until(lambda: gauge.peak_bytes > 0)
    gauge.stop()
    assert gauge.peak_bytes == 90


def test_readme_drift_is_about_words_and_thresholds_not_measured_values(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    report.write_readme(readme, [_result(value=0.7, says="A | B")])
    assert report.drift(readme, [_result(value=0.9, says="A | B")]) == []
    stale, missing = sorted(report.drift(readme, [_result(value=0.7, says="A & B")]))[::-1]
    assert missing.startswith("+ ") and "A & B" in missing
    assert stale.startswith("- ") and "A \\| B" in stale
    assert report.drift(readme, [_result(value=0.7, says="A | B", threshold=0.6)])
    assert report.drift(readme, []) != []


def test_a_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here")
    with pytest.raises(ValueError, match=r"README.md: expected one <!-- claims:begin -->"):
        report.write_readme(readme, [])


def test_results_are_whole_json(tmp_path):
    outcome.write_results(tmp_path, [_result(value=float("nan"))], {"seed": 0}, 2, 1.0)
    text = (tmp_path / "results.json").read_text("utf-8")
    content = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert content["lessons"][0]["claims"][0]["value"] == "nan"


def _result(value, says="A", threshold=0.5):
    record = outcome.Record("tiny.claim", value, says, "Nobody 2026", ">", threshold)
    return outcome.Result("00_only", "passed", 1.0, 1, claims=[record])


def _wait_for_pid(path, process) -> int:
    _wait_until(lambda: (path.exists() and path.read_text()) or process.poll() is not None)
    return int(path.read_text())


def _wait_until(condition, seconds=60) -> None:
    """Look fifty times a second; give up after a minute."""
    tick = threading.Event()
    for _ in range(seconds * 50):
        if condition():
            return
        tick.wait(0.02)
    pytest.fail("waited a minute in vain")
