"""Claims: one measured number against one threshold, tied to a published statement.

    claim("decoding.cache-saves-time", slow / fast, ">", 2,
          says="The cache makes decoding at least twice as fast", source="Pope et al. 2022, §3")

A claim shows one line (✓ or ✗, the number, the threshold, the source) and raises when it does
not hold. Where an effect honestly does not reproduce at this size, `finding` records the
number without judging it. Both leave a machine-readable record in the cell's output under
`MIME`, from which the runner builds the tables of the report and the README.
"""

import html
import math
import operator
import re
from dataclasses import asdict, dataclass
from typing import Any

from IPython.display import display

MIME = "application/vnd.minillm.claim+json"

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SYMBOLS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥"}
_NAME = re.compile(r"[a-z0-9_]+\.[a-z0-9-]+")
_COLOURS = {"✓": "#009E73", "✗": "#D55E00", "·": "#0072B2"}  # Okabe-Ito: safe for colour blindness


class ClaimError(AssertionError):
    """A claim does not hold."""


@dataclass(frozen=True)
class Record:
    """What a claim or a finding measured. A finding has neither `op` nor `threshold`."""

    name: str
    value: float
    says: str
    source: str
    op: str | None = None
    threshold: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the threshold (NaN never is)."""
        return self.op is None or _OPERATORS[self.op](self.value, self.threshold)

    @property
    def mark(self) -> str:
        """✓ or ✗ for a claim, · for a finding."""
        return "·" if self.op is None else "✓" if self.holds else "✗"

    @property
    def bound(self) -> str:
        """The threshold in words, such as "> 0.5", or "reported" for a finding."""
        return "reported" if self.op is None else f"{_SYMBOLS[self.op]} {number(self.threshold)}"

    def to_dict(self) -> dict[str, Any]:
        """The record as strict JSON, which knows no NaN and no infinity: those become text."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        return asdict(self) | {"value": value, "holds": self.holds}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Record":
        """Read back what `to_dict` wrote."""
        fields = {name: data[name] for name in cls.__dataclass_fields__}
        return cls(**fields | {"value": float(data["value"])})

    def __str__(self) -> str:
        measured = f"{self.mark} {self.name}: {number(self.value)} ({self.bound})"
        return f"{measured}  {self.says}  [{self.source}]"

    __repr__ = __str__

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        colour = _COLOURS[self.mark]
        line = (
            f'<div style="border-left:3px solid {colour};padding:2px 10px;margin:4px 0">'
            f'<b style="color:{colour}">{self.mark}</b> {html.escape(self.says)}: '
            f"<b>{number(self.value)}</b> ({html.escape(self.bound)})<br>"
            f"<small><code>{self.name}</code> · {html.escape(self.source)}</small></div>"
        )
        return {MIME: self.to_dict(), "text/html": line, "text/plain": str(self)}


class Table(list):
    """Records that show as a table, here and in the report."""

    def _repr_html_(self) -> str:
        heads = ("", "what it says", "measured", "expected", "source")
        rows = [
            f'<tr><td style="color:{_COLOURS[r.mark]}"><b>{r.mark}</b></td>'
            f'<td style="text-align:left">{html.escape(r.says)}</td>'
            f"<td>{number(r.value)}</td><td>{html.escape(r.bound)}</td>"
            f'<td style="text-align:left">{html.escape(r.source)}</td></tr>'
            for r in self
        ]
        left = ' style="text-align:left"'
        head = "".join(
            f"<th{left if h in ('what it says', 'source') else ''}>{h}</th>" for h in heads
        )
        return (
            f"<table class='claims'><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no claims yet"


_session: dict[str, Record] = {}  # by name, so that running a cell twice leaves one row


def claim(name: str, value: float, op: str, threshold: float, *, says: str, source: str) -> None:
    """Show and record that `value op threshold`, and raise when it does not hold.

    Args:
        name: "lesson_topic.what-it-says", unique in the course.
        value: the measured number (a 0-d tensor will do).
        op: one of < <= > >=.
        threshold: a finite number, with room to spare for every seed from 0 to 4.
        says: one sentence a reader understands without the code.
        source: the publication and section it comes from.

    Raises:
        ClaimError: the claim does not hold; its record is displayed first.
        ValueError: a malformed name, operator, threshold or an empty text.
    """
    if op not in _OPERATORS:
        raise ValueError(f"op={op!r}: expected one of {' '.join(_OPERATORS)}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold!r}: expected a finite number")
    record = _record(name, value, says, source, op, float(threshold))
    if not record.holds:
        raise ClaimError(str(record))


def finding(name: str, value: float, *, says: str, source: str) -> None:
    """Show and record a measured number that is reported as found; never fails on the number.

    Raises:
        ValueError: a malformed name or an empty text.
    """
    _record(name, value, says, source)


def claims_table() -> Table:
    """All claims and findings of this kernel session, in the order they were first made."""
    return Table(_session.values())


def number(value: float) -> str:
    """A number as a reader wants it: 0.4321, 12.35, 1,234, 3.2e-07.

    >>> number(0.43210), number(1234.5), number(7)
    ('0.4321', '1,234', '7')
    """
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _record(name, value, says, source, op=None, threshold=None) -> Record:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: expected 'lesson_topic.what-it-says' in lower case, "
            "words of the claim joined by hyphens"
        )
    for label, text in (("says", says), ("source", source)):
        if not text.strip():
            raise ValueError(f"{label}={text!r} of {name!r}: expected a sentence, not nothing")
    record = Record(name, float(value), says, source, op, threshold)
    _session[name] = record
    display(record)
    return record
