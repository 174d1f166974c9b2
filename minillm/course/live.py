"""Learning curves that grow while a policy learns."""

from collections.abc import Iterable, Iterator

import matplotlib.pyplot as plt
from IPython.display import HTML, display

from minillm.align.experience import Experience, summary
from minillm.course.figures import as_html

NAMES = {
    "reward": "reward",
    "kl": "KL (nats per response)",
    "length": "length (tokens)",
    "entropy": "entropy (nats per token)",
    "informative": "share of groups that teach",
}


def live_curves(
    experiences: Iterable[Experience],
    history: list[dict[str, float]],
    *,
    every: int = 5,
    title: str = "",
) -> Iterator[Experience]:
    """Pass experiences on to the training loop, and draw what they were like.

    Args:
        experiences: what the loop is to learn from.
        history: gets one `align.experience.summary` each; draw from it afterwards.
        every: experiences from one drawing to the next, at least 1. The picture below the cell is
            replaced, so that one remains, that of the end.

    Raises:
        ValueError: `every` below 1.

    Example: ``train(policy, live_curves(experiences(), history), …)``.
    """
    if every < 1:
        raise ValueError(f"every={every}: expected at least 1")
    handle = display(HTML(""), display_id=True)
    try:
        for experience in experiences:
            history.append(summary(experience))
            if len(history) % every == 0:
                _redraw(handle, history, title)
            yield experience
    finally:  # the loop takes as many as it needs and goes: the last ones are still to be drawn
        if len(history) % every:
            _redraw(handle, history, title)


def draw_history(history: list[dict[str, float]], title: str = "") -> plt.Figure:
    """One small picture for each number of the summaries, over the steps."""
    shown = [name for name in NAMES if name in history[0]]
    n_columns = 2 if len(shown) == 4 else min(len(shown), 3)
    n_rows = -(-len(shown) // n_columns)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(8, 2.3 * n_rows), squeeze=False)
    for ax, name in zip(axes.flat, shown, strict=False):
        ax.plot(range(1, len(history) + 1), [numbers[name] for numbers in history])
        ax.set_title(NAMES[name], fontsize=11)
        ax.set_xlabel("step")
        if name in ("length", "informative"):
            ax.set_ylim(0, 1.1 * max(numbers[name] for numbers in history) or 1)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    fig.suptitle(title)
    return fig


def _redraw(handle, history, title) -> None:
    if handle is None:  # plain Python: there is nothing to draw on
        return
    last = ", ".join(f"{name} {value:.2f}" for name, value in history[-1].items())
    alt = f"{title or 'Learning curves'}: after {len(history)} steps {last}"
    handle.update(as_html(draw_history(history, title), alt=alt))
