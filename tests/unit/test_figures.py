"""Figures and widgets: what the reader gets as HTML, and what is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.text import Text

from minillm.course import figures, widgets


@pytest.fixture
def shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(figures, "display", lambda html: displayed.append(html.data))
    plt.switch_backend("Agg")
    return displayed


def test_figure_is_an_image_with_escaped_alt_text_and_is_closed(shown):
    fig, _ = plt.subplots()
    figures.show(fig, alt='loss < floor, "nearly"')
    assert 'alt="loss &lt; floor, &quot;nearly&quot;"' in shown[0]
    assert 'src="data:image/png;base64,iVBOR' in shown[0]
    assert not plt.fignum_exists(fig.number)


def test_figure_without_alt_text_is_refused(shown):
    with pytest.raises(ValueError, match="say in a sentence"):
        figures.show(plt.figure(), alt=" ")
    plt.close("all")


def test_heatmap_writes_values_that_can_be_read_on_their_square():
    _, ax = plt.subplots()
    figures.heatmap(ax, torch.tensor([[0.0, 1.0]], requires_grad=True), values=".1f")
    assert [(text.get_text(), text.get_color()) for text in ax.texts] == [
        ("0.0", "k"),
        ("1.0", "w"),
    ]
    with pytest.raises(ValueError, match=r"expected a matrix, got shape \(2,\)"):
        figures.heatmap(ax, torch.ones(2))
    plt.close("all")


def test_curves_draw_series_and_levels_with_a_legend():
    _, ax = plt.subplots()
    figures.curves(
        ax, range(3), {"ours": torch.ones(3)}, xlabel="step", ylabel="nats", levels={"floor": 0.5}
    )
    assert [text.get_text() for text in ax.get_legend().texts] == ["ours", "floor"]
    assert list(ax.lines[1].get_ydata()) == [0.5, 0.5]
    plt.close("all")


def test_tokens_show_spaces_lone_bytes_and_no_markup():
    text = widgets.token_html([" <b>", b"\xe4\xbd", "\n"], notes=["1", "2", "3"]).data
    assert "␣&lt;b&gt;" in text and "‹E4 BD›" in text and "⏎</span><br>" in text
    assert 'title="2"' in text


def test_token_values_shade_from_clear_to_dark():
    text = widgets.token_html(["a", "b"], values=[0, 2]).data
    assert "rgba(0,114,178,0.00)" in text and "rgba(0,114,178,0.75)" in text
    with pytest.raises(ValueError, match="1 values for 2 tokens"):
        widgets.token_html(["a", "b"], values=[1])


def test_bars_show_the_likeliest_on_top():
    _, ax = plt.subplots()
    widgets.next_token_bars(ax, [" a", b"$", " c"], torch.tensor([0.2, 0.5, 0.3]), n=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"\$", "␣c"]
    assert [round(bar.get_width(), 3) for bar in ax.patches] == [0.5, 0.3]
    plt.close("all")


class FakeChat:
    """Answers with a few pieces; what it does after them is the test's choice."""

    max_new_tokens, forgotten, ending = 3, 0, "end"

    def __init__(self):
        self.heard = []

    def say(self, text):
        self.heard.append(text)
        yield from ("<i>", " yes")
        if isinstance(self.ending, BaseException):
            raise self.ending

    def reset(self):
        self.heard.clear()


@pytest.fixture
def box():
    """A chat, the box around it, and what the reader sees: every state of the log."""
    chat = FakeChat()
    log, controls = widgets.chat_box(chat).children
    states = []
    log.observe(lambda change: states.append(change.new), "value")
    return chat, *controls.children, states


def test_chat_box_shows_the_answer_as_it_comes_with_everything_escaped(box):
    chat, line, send, _, states = box
    line.value = " <b>hi</b> "
    send.click()
    assert chat.heard == ["<b>hi</b>"] and line.value == ""
    assert ["&lt;i&gt;<" in s for s in states] == [False, True, False]
    assert "&lt;b&gt;hi&lt;/b&gt;" in states[-1] and "&lt;i&gt; yes" in states[-1]
    assert not send.disabled
    send.click()  # nothing typed
    assert chat.heard == ["<b>hi</b>"]


@pytest.mark.parametrize(
    ("ending", "note"),
    [
        ("length", "Stopped after 3 tokens"),
        (KeyboardInterrupt(), "Stopped."),
        (ValueError("it is > 5 tokens long"), "it is &gt; 5 tokens long"),
    ],
)
def test_chat_box_says_why_an_answer_ended_and_goes_on(box, ending, note):
    chat, line, send, _, states = box
    chat.ending = ending
    line.value = "hi"
    send.click()
    assert note in states[-1] and " yes" in states[-1] and not send.disabled


def test_chat_box_starts_again(box):
    chat, line, send, again, states = box
    line.value = "hi"
    send.click()
    again.click()
    assert chat.heard == [] and states[-1] == ""


def test_group_table_counts_equal_answers_and_shows_which_way_each_is_pushed():
    text = widgets.group_table(
        "1+2=", ["1 3 #3", "1 4 #4", "1 4 #4", "<3>"], [1.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]
    ).data
    rows = text.split("<tr>")[2:]
    assert ["1×" in rows[0], "2×" in rows[1], "1×" in rows[2]] == [True] * 3
    assert "1␣3␣#3" in rows[0] and "+1.50" in rows[0] and "1+2=" in text
    assert "left:60px;width:60px" in rows[0] and figures.COLORS["blue"] in rows[0]
    assert "left:40px;width:20px" in rows[1] and figures.COLORS["vermillion"] in rows[1]
    assert "&lt;3&gt;" in rows[2]


def test_group_table_of_a_group_that_teaches_nothing_has_no_bars():
    text = widgets.group_table("?", ["a", "b"], [0, 0], [0, 0]).data
    assert text.count("width:0px") == 2 and "nan" not in text


def test_group_table_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match="2 answers, 1 rewards and 2 advantages"):
        widgets.group_table("?", ["a", "b"], [0], [0, 0])
    with pytest.raises(ValueError, match="0 answers"):
        widgets.group_table("?", [], [], [])


def test_labels_of_a_crowd_cover_nothing():
    """Thirty points in a heap beside one alone, and a legend: no name hides anything."""
    points = np.random.default_rng(0).normal(0, 0.08, (30, 2))
    points = np.concatenate([points, [[1.0, 1.0]]])
    labels = [f"word {i}" for i in range(31)]
    fig, ax = plt.subplots()
    ax.scatter(*points.T, s=18, label="words")
    ax.legend(loc="lower left")
    figures.label_points(ax, labels, points, colors=["blue"] * 31)
    fig.canvas.draw()
    drawn = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}
    assert len(drawn) >= 20 and "word 30" in drawn
    boxes = [box.padded(-1) for box in drawn.values()]  # the edges may be a rounding apart
    others = [ax.get_legend().get_window_extent(), *boxes]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for j, other in enumerate(others) if j != i + 1)
        assert not any(box.contains(*place) for place in ax.transData.transform(points))
        assert box.x0 > ax.bbox.x0 and box.x1 < ax.bbox.x1
        assert box.y0 > ax.bbox.y0 and box.y1 < ax.bbox.y1
    alone, place = drawn["word 30"], ax.transData.transform((1.0, 1.0))
    assert np.hypot(*(alone.get_points().mean(0) - place)) < alone.width / 2 + 12
    plt.close(fig)


def test_a_cell_with_a_widget_ends_a_moment_later_so_that_runners_see_its_end(monkeypatch):
    shell, waits = InteractiveShell(), []
    monkeypatch.setattr(figures, "get_ipython", lambda: shell)
    monkeypatch.setattr(figures.time, "sleep", waits.append)
    figures.style()
    figures.style()  # running the first cell again must not double the wait
    shell.run_cell("1 + 1")
    assert waits == []
    shell.run_cell("interact = print\ninteract(1)")
    assert waits == [0.5]
