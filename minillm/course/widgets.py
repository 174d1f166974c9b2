"""Pieces that several lessons share: coloured tokens, bars, a group of answers, a box to chat in.

All but the box draw from plain values and know no model, so the same call makes the static
picture.
"""

import contextlib
import html
from collections import Counter
from collections.abc import Sequence

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML

from minillm.course.figures import COLORS
from minillm.infer.chat import Chat

# Pale, told apart in grey, black text readable on each; neighbours never share one.
_SHADES = ("#CFE6F5", "#FBE3B4", "#CDEBDD", "#F5D9E8", "#FFF6B8")


def visible(token: str | bytes) -> str:
    """A token as a reader sees it: spaces, line ends and lone bytes get a sign of their own.

    >>> visible(" the"), visible("\\n"), visible(b"\\xe4\\xbd")
    ('␣the', '⏎', '‹E4 BD›')
    """
    if isinstance(token, bytes):
        try:
            token = token.decode()
        except UnicodeDecodeError:  # part of a character: there is no letter to show
            return f"‹{token.hex(' ').upper()}›"
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def token_html(
    tokens: Sequence[str | bytes],
    *,
    values: Sequence[float] | None = None,
    highest: float | None = None,
    notes: Sequence[str] | None = None,
) -> HTML:
    """A text as coloured tokens, one box each.

    Args:
        tokens: the pieces in order.
        values: one number ≥ 0 a token; shades it from white (0) to blue (`highest`), where the
            boxes otherwise only alternate. Surprisal in nats, say.
        highest: the value shown darkest; the largest of `values` when None.
        notes: one tooltip a token, such as its id.

    Raises:
        ValueError: `values` or `notes` has another length than `tokens`.
    """
    for name, given in (("values", values), ("notes", notes)):
        if given is not None and len(given) != len(tokens):
            raise ValueError(f"{len(given)} {name} for {len(tokens)} tokens: expected one each")
    boxes = []
    for index, token in enumerate(tokens):
        background = _SHADES[index % len(_SHADES)]
        if values is not None:
            share = min(max(float(values[index]) / (highest or max(values) or 1), 0), 1)
            background = f"rgba(0,114,178,{0.75 * share:.2f})"
        title = f' title="{html.escape(notes[index])}"' if notes is not None else ""
        end = "<br>" if visible(token).endswith("⏎") else "<wbr>"
        boxes.append(
            f'<span{title} style="background:{background};padding:1px 2px;margin:1px;'
            f'border-radius:3px">{html.escape(visible(token))}</span>{end}'
        )
    return HTML(
        '<div style="background:white;color:#111;padding:8px;border-radius:6px;line-height:1.9;'
        f'font-family:monospace;overflow-wrap:anywhere">{"".join(boxes)}</div>'
    )


def next_token_bars(
    ax: plt.Axes,
    tokens: Sequence[str | bytes],
    probabilities: Sequence[float],
    *,
    n: int = 10,
    title: str = "",
) -> None:
    """The `n` most likely next tokens as horizontal bars, the likeliest on top.

    Args:
        tokens: candidate tokens, in any order.
        probabilities: the probability of each, 0 to 1; they need not sum to 1.
    """
    best = sorted(zip(map(float, probabilities), tokens, strict=True), key=lambda pair: -pair[0])
    best = best[:n]
    places = range(len(best))
    ax.barh(places, [p for p, _ in best], color=COLORS["blue"])
    # A dollar sign must not start a formula.
    ax.set_yticks(places, [visible(token).replace("$", r"\$") for _, token in best])
    ax.tick_params(axis="y", labelfontfamily="monospace", length=0)
    ax.invert_yaxis()
    for place, (p, _) in zip(places, best, strict=True):
        ax.text(p + 0.01, place, f"{p:.1%}", va="center", fontsize=11)
    ax.set(xlim=(0, 1.1), xlabel="probability of the next token", title=title)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.grid(axis="y", visible=False)


def group_table(
    question: str,
    answers: Sequence[str],
    rewards: Sequence[float],
    advantages: Sequence[float],
) -> HTML:
    """One group: what a policy answered to one question, what it earned, what it will learn.

    Answers that are word for word the same share a row, with their number; the best come first.
    The bar is the advantage: to the right and blue where the answer is made more likely, to the
    left and red where less, and none in a group that teaches nothing.

    Raises:
        ValueError: not as many rewards and advantages as answers, or no answers.
    """
    if not len(answers) == len(rewards) == len(advantages) or not answers:
        raise ValueError(
            f"{len(answers)} answers, {len(rewards)} rewards and {len(advantages)} advantages: "
            "expected as many of each, and at least one"
        )
    given = zip(answers, map(float, rewards), map(float, advantages), strict=True)
    counts = Counter(given)
    largest = max(abs(advantage) for _, _, advantage in counts) or 1.0
    rows = sorted(counts.items(), key=lambda row: (-row[0][2], -row[1], row[0][0]))
    body = "".join(_group_row(*row, n, largest) for row, n in rows)
    heads = "".join(
        f'<th style="text-align:left;padding:2px 10px">{name}</th>'
        for name in ("times", "answer", "reward", "advantage")
    )
    return HTML(
        '<div style="background:white;color:#111;padding:8px;border-radius:6px;'
        'display:inline-block">'
        f'<div style="font-family:monospace;padding:2px 10px"><b>{html.escape(question)}</b></div>'
        f'<table style="color:#111;border-collapse:collapse"><tr>{heads}</tr>{body}</table></div>'
    )


def _group_row(answer: str, reward: float, advantage: float, n: int, largest: float) -> str:
    width = round(60 * abs(advantage) / largest)
    left, colour = (60, COLORS["blue"]) if advantage > 0 else (60 - width, COLORS["vermillion"])
    bar = (
        '<div style="position:relative;width:120px;height:12px;'
        'background:linear-gradient(#999,#999) center/1px 100% no-repeat">'
        f'<div style="position:absolute;left:{left}px;width:{width}px;height:12px;'
        f'background:{colour}"></div></div>'
    )
    cells = (
        f"{n}×",
        f'<span style="font-family:monospace">{html.escape(visible(answer))}</span>',
        f"{reward:g}",
        f'<div style="display:flex;gap:8px;align-items:center">{bar}{advantage:+.2f}</div>',
    )
    return "<tr>" + "".join(f'<td style="padding:2px 10px">{c}</td>' for c in cells) + "</tr>"


def chat_box(chat: Chat) -> ipywidgets.VBox:
    """A conversation below a cell: type, press Enter or Send, and read while the model writes.

    The kernel is busy meanwhile; interrupting it stops the answer and keeps what was said.
    Nothing is computed before somebody types.
    """
    turns: list[tuple[str, str]] = []
    log = ipywidgets.HTML()
    line = ipywidgets.Text(placeholder="Say something", layout={"width": "60%"})
    send = ipywidgets.Button(description="Send", button_style="primary")
    again = ipywidgets.Button(description="Start again")

    def show(role: str, text: str) -> None:
        """Put a turn below the others, or more text into the turn that stands last."""
        if turns and turns[-1][0] == role:
            text = turns.pop()[1] + text
        turns.append((role, text))
        log.value = _turns_html(turns)

    def answer(*_) -> None:
        question, line.value = line.value.strip(), ""
        if not question:
            return
        show("user", question)
        send.disabled = again.disabled = True
        try:
            with contextlib.closing(chat.say(question)) as pieces:
                for piece in pieces:
                    show("assistant", piece)
            if chat.forgotten:
                show(
                    "note", f"The context is full: the oldest {chat.forgotten} questions are gone. "
                )
            if chat.ending == "length":
                show("note", f"Stopped after {chat.max_new_tokens} tokens.")
        except KeyboardInterrupt:
            show("note", "Stopped.")
        except ValueError as error:
            show("note", str(error))
        finally:
            send.disabled = again.disabled = False

    def start_again(_) -> None:
        chat.reset()
        turns.clear()
        log.value = ""

    send.on_click(answer)
    line.on_msg(lambda _, content, buffers: content.get("event") == "submit" and answer())  # Enter
    again.on_click(start_again)
    return ipywidgets.VBox([log, ipywidgets.HBox([line, send, again])])


_TURN_STYLES = {
    "user": "background:#CFE6F5;color:#111;margin-left:15%",
    "assistant": "background:#EFEFEF;color:#111;margin-right:15%",
    "note": "font-style:italic;opacity:0.7",
}


def _turns_html(turns: Sequence[tuple[str, str]]) -> str:
    """Turns of a conversation, in a box that stays scrolled to its end."""
    rows = "".join(
        f'<div class="chat-{role}" style="{_TURN_STYLES[role]};white-space:pre-wrap;'
        f'padding:4px 10px;margin-bottom:6px;border-radius:8px">{html.escape(text)}</div>'
        for role, text in turns
    )
    return (
        '<div style="display:flex;flex-direction:column-reverse;max-height:24em;overflow-y:auto;'
        f'line-height:1.4"><div>{rows}</div></div>'
    )
