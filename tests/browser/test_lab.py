"""Lessons in a real browser: JupyterLab opens them, runs all, and the widgets answer.

Needs Debian's `chromium` (or Google Chrome); nothing is downloaded. Both the server and the
browser are the test's own: a random token, a free port, Jupyter folders in a temporary place.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RUN_ALL_MS = 300_000  # far beyond a lesson's limit of 60 s, for a machine that is busy
WAIT_MS = 60_000

# Without windowing every cell is in the page, not only those on the screen; news is a request.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Errors and progress bars look alike in the page, so these ask the open notebook itself.
CODE_CELLS = (
    "jupyterapp.shell.currentWidget.content.model.toJSON().cells"
    ".filter(cell => cell.cell_type === 'code')"
)
ERRORS = (
    f"{CODE_CELLS}.flatMap(cell => cell.outputs)"
    ".filter(output => output.output_type === 'error').map(error => error.evalue)"
)


@dataclass
class Lab:
    """A running JupyterLab on a copy of the lessons."""

    url: str
    token: str
    root: Path
    log: list[str] = field(default_factory=list)


@dataclass
class Visit:
    """A page, and what went wrong on it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser():
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    executable = next(filter(None, found), None)
    if executable is None:
        pytest.fail("no Chromium found: apt-get install chromium (or install Google Chrome)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    home = tmp_path_factory.mktemp("jupyter")
    root = home / "lessons"
    shutil.copytree(NOTEBOOKS, root, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, setting in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    port, token = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    server = subprocess.Popen(
        command,
        env=os.environ | {name: str(home / folder) for name, folder in folders.items()},
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lab = Lab(f"http://localhost:{port}", token, root)
    try:
        for line in server.stderr:
            lab.log.append(line)
            if "is running at" in line:
                break
        else:
            pytest.fail("JupyterLab did not start:\n" + "".join(lab.log))
        # Someone must go on reading, or the server stops when the pipe is full.
        threading.Thread(target=lab.log.extend, args=(server.stderr,), daemon=True).start()
        yield lab
    finally:
        server.terminate()  # asks it to shut its kernels down too
        server.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def visit(browser: Browser, lab: Lab):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context.new_page())

    def refuse_outside(route):
        if route.request.url.startswith((lab.url, "data:", "blob:")):
            route.continue_()
        else:
            visit.outside.append(route.request.url)
            route.abort()

    context.route("**/*", refuse_outside)
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.on(
        "console",
        lambda message: (
            visit.errors.append(f"{message.text} ({message.location.get('url')})")
            if message.type == "error"
            else None
        ),
    )
    yield visit
    context.close()


def open_lesson(page: Page, lab: Lab, name: str) -> None:
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook", timeout=WAIT_MS)
    # The indicators show "idle" before the kernel has answered; this promise does not.
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.ready")


def run_all(page: Page) -> None:
    """Choose Run › Run All Cells; wait until every code cell has run or one has failed."""
    page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()
    page.wait_for_function(
        f"""() => {{
            const cells = {CODE_CELLS};
            return ({ERRORS}).length > 0 || cells.every(cell => cell.execution_count);
        }}""",
        timeout=RUN_ALL_MS,
        polling=500,
    )
    assert page.evaluate(ERRORS) == []


def move_first_slider(page: Page) -> tuple[str, str]:
    """Move the first slider that redraws a picture by one step; the picture before and after."""
    widget = page.locator(".widget-interact", has=page.locator("img")).first
    picture = widget.locator("img").first
    picture.wait_for(timeout=WAIT_MS)
    handle = widget.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    before = picture.get_attribute("src")
    at_start = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin")
    handle.focus()
    handle.press("ArrowRight" if at_start else "ArrowLeft")
    page.wait_for_function(
        "([element, before]) => element.querySelector('img')?.src !== before"
        " && element.querySelector('img')",
        arg=[widget.element_handle(), before],
        timeout=WAIT_MS,
    )
    return before, picture.get_attribute("src")


@pytest.mark.parametrize("name", ["00_start_here", "04_attention_to_transformer"])
def test_lesson_runs_and_its_slider_redraws_the_picture(visit: Visit, lab: Lab, name: str):
    page = visit.page
    open_lesson(page, lab, f"{name}.ipynb")
    run_all(page)
    page.locator("table.claims").wait_for(timeout=WAIT_MS)
    assert page.locator(".jp-Notebook img:not([alt])").count() == 0, (
        "every picture has a text alternative"
    )
    before, after = move_first_slider(page)
    assert before != after
    assert before.startswith("data:image/png;base64,") and after.startswith("data:image/png")
    assert not visit.errors
    assert not visit.outside


# Random weights give random answers; without special tokens none of them ends before its time.
CHAT = """
from minillm.course.widgets import chat_box
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import Chat
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer

tokenizer = Tokenizer.train(["who are you"], 260, ())
config = llama_config(tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2)
chat_box(Chat(Transformer(config), tokenizer, max_new_tokens=20))
"""


def test_the_chat_box_answers_and_shows_what_is_typed_as_text(visit: Visit, lab: Lab):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(CHAT)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, lab.root / "chat.ipynb")
    page = visit.page
    open_lesson(page, lab, "chat.ipynb")
    run_all(page)
    line = page.get_by_placeholder("Say something")
    for n_turns, key in ((1, "Enter"), (2, "Send")):
        line.fill("who <b>are</b> you")
        line.press("Enter") if key == "Enter" else page.get_by_role("button", name=key).click()
        page.locator(".chat-note").nth(n_turns - 1).wait_for(timeout=WAIT_MS)  # it is finished
        assert page.locator(".chat-user").all_inner_texts() == ["who <b>are</b> you"] * n_turns
        assert all(page.locator(".chat-assistant").all_inner_texts())
    page.get_by_role("button", name="Start again").click()
    page.locator(".chat-user").first.wait_for(state="detached", timeout=WAIT_MS)
    assert not visit.errors
    assert not visit.outside
