"""Figures and widgets: what the reader gets as HTML, and what is refused."""

import matplotlib.pyplot as plt
import pytest
import torch

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
