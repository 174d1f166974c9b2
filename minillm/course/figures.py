"""One look for every picture of the course.

Call `style()` once at the top of a lesson, draw with plain matplotlib, and end with
`show(fig, alt="what a reader who cannot see it should know")`. The colours are those of
Okabe and Ito (2008), told apart by colour-blind readers; the card behind a figure is opaque
white, so that it reads on light and on dark themes.
"""

import base64
import html
import io
import itertools
import math
import time
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.transforms import Bbox

COLORS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#767676",  # not of Okabe and Ito: for baselines, floors and other quiet lines
}

_CSS_DPI = 100  # figure inches to CSS pixels: a figure 8 inches wide takes 800 pixels
_PNG_DPI = 160  # sharper than the screen asks for, for projectors and print


def style() -> None:
    """Set the course's matplotlib defaults: 8 × 3.6 inches, 12-point text, Okabe–Ito cycle."""
    cycle = [colour for name, colour in COLORS.items() if name != "grey"]
    mpl.rcParams.update(
        {
            "figure.figsize": (8, 3.6),
            "figure.dpi": _CSS_DPI,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "axes.prop_cycle": mpl.cycler(color=cycle),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 13,
            "axes.titlelocation": "left",
            "axes.labelsize": 12,
            "font.size": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.8,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "lines.linewidth": 2,
            "image.cmap": "Blues",
        }
    )
    if get_ipython() is not None:
        get_ipython().events.register("post_run_cell", _let_runners_catch_up)


def _let_runners_catch_up(result) -> None:
    """Wait a moment at the end of a cell with a widget.

    papermill and nbclient send what a widget shows back to the kernel. If the cell ends meanwhile,
    they can miss its end and wait for ever (nbclient issue 312).
    """
    if "interact(" in (result.info.raw_cell or ""):
        time.sleep(0.5)


def show(fig: plt.Figure, *, alt: str) -> None:
    """Display `fig` as an image with a text alternative, then close it.

    Works the same in a cell and inside `interact`, where each call replaces the last picture.

    Raises:
        ValueError: `alt` is empty.
    """
    display(as_html(fig, alt=alt))


def as_html(fig: plt.Figure, *, alt: str) -> HTML:
    """What `show` displays, for a display that is to be replaced later; closes `fig`.

    Raises:
        ValueError: no alternative text.
    """
    if not alt.strip():
        raise ValueError(f"alt={alt!r}: say in a sentence what the picture shows")
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=_PNG_DPI)
    plt.close(fig)
    width = round(fig.get_figwidth() * _CSS_DPI)
    data = base64.b64encode(png.getvalue()).decode()
    return HTML(
        f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" '
        f'style="width:{width}px;max-width:100%;background:white;'
        'border-radius:6px;padding:6px;box-sizing:border-box">'
    )


def heatmap(
    ax: plt.Axes,
    matrix,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    values: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    cmap: str = "Blues",
):
    """Draw `matrix` (n_rows, n_columns) as coloured squares; return the image, for a colour bar.

    `rows` and `columns` name the ticks; `values=".2f"` prints each number in its square.

    Raises:
        ValueError: `matrix` has another shape.
    """
    matrix = _array(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"heatmap: expected a matrix, got shape {matrix.shape}")
    image = ax.imshow(matrix, cmap=cmap, vmin=vmin, vmax=vmax, aspect="auto")
    ax.grid(False)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if columns is not None:
        turned = max((len(str(name)) for name in columns), default=0) > 3
        slant = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        ax.set_xticks(range(len(columns)), columns, **slant)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    if values is not None:
        for (i, j), value in np.ndenumerate(matrix):
            # White text where the square is dark, by the luminance the eye perceives.
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            ax.text(
                j, i, format(value, values), ha="center", va="center", color="w" if dark else "k"
            )
    return image


def curves(
    ax: plt.Axes,
    x,
    series: Mapping[str, object],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    levels: Mapping[str, float] | None = None,
    marker: str | None = None,
) -> None:
    """Draw one line a series over a shared `x`, and dashed horizontal `levels` to compare with.

    Both axes must be labelled, with units where there are any: "loss (nats per token)".
    """
    x = _array(x)
    for label, y in series.items():
        ax.plot(x, _array(y), label=label, marker=marker)
    for label, level in (levels or {}).items():
        ax.axhline(float(level), color=COLORS["grey"], linestyle="--", linewidth=1.5, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(series) + len(levels or {}) > 1:
        ax.legend()


def label_points(
    ax: plt.Axes, labels: Sequence[str], points, *, colors: Sequence, fontsize: float = 9
) -> None:
    """Write each label by its point, where it covers no other label, no point and no legend.

    A label that finds no room beside its point stands farther off, on a thin line; where a crowd
    leaves no room at all the point stays without a name. Call it last, once for all points.

    Args:
        points: (n, 2), in the units of the axes.
        colors: one for each label.
    """
    ax.figure.canvas.draw()  # only then does the figure know where its points are
    pixels = ax.figure.dpi / 72  # in one point of type, the unit of all that follows
    centres = ax.transData.transform(_array(points)) / pixels
    room = Bbox(ax.bbox.get_points() / pixels)
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in centres]
    if legend := ax.get_legend():
        taken.append(Bbox(legend.get_window_extent().get_points() / pixels))
    for label, point, centre, color in zip(labels, points, centres, colors, strict=True):
        probe = ax.text(0, 0, label, fontsize=fontsize)
        size = probe.get_window_extent().size / pixels
        probe.remove()
        if (box := _free_box(centre, size, room, taken)) is None:
            continue
        taken.append(box)
        middle = ((box.x0 + box.x1) / 2 - centre[0], (box.y0 + box.y1) / 2 - centre[1])
        ax.annotate(
            label, point, middle, textcoords="offset points", ha="center", va="center",
            fontsize=fontsize, color=color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkB": 3},
        )  # fmt: skip


def _free_box(centre, size, room: Bbox, taken: Sequence[Bbox]) -> Bbox | None:
    """The nearest box of a size around a centre that lies in the room and on nothing taken."""
    for gap, angle in itertools.product(range(6, 60, 6), range(0, 360, 30)):
        x = centre[0] + math.cos(math.radians(angle)) * (gap + size[0] / 2)
        y = centre[1] + math.sin(math.radians(angle)) * (gap + size[1] / 2)
        box = Bbox.from_bounds(x - size[0] / 2, y - size[1] / 2, *size)
        inside = room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1)
        if inside and not any(box.overlaps(other) for other in taken):
            return box
    return None


def _array(values) -> np.ndarray:
    """A numpy copy of a tensor (any device, with or without gradient), array or list."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu()
    return np.asarray(values)
