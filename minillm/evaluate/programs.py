"""Generate, run, filter, cluster: choose one program of many by what they do.

    did = behaviours(programs, inputs)             what each gives on each input, in the sandbox
    kept = passing(did, expected)                  filter: who gives what is known to be right
    groups = clusters(did, kept)                   who behaves alike elsewhere, largest group first

The recipe of AlphaCode (Li et al. 2022, §4.4–4.6): nearly all samples fail the example tests, so
filtering by them helps most; the rest are run on inputs whose right answer nobody knows, and
programs that agree everywhere count as one. The largest group is the best guess.
"""

import json
from collections.abc import Sequence
from typing import Any

from minillm.evaluate.sandbox import DEFAULT_LIMITS, Limits, call

Behaviour = tuple[str | None, ...]  # a value as JSON for each input; None where there was none

# Runs in the sandbox. Every program gets names of its own, and fails alone.
_HARNESS = """
import copy, json
functions = []
for text in json.loads({sources!r}):
    names = {{}}
    try:
        exec(text, names)
    except Exception:
        names = {{}}
    functions.append(names.get({name!r}))

def outcome(function, given):
    try:
        return json.dumps(function(*copy.deepcopy(given)))
    except Exception:
        return None

def all_outcomes(given):
    return [outcome(function, given) for function in functions]
"""


def behaviours(
    programs: Sequence[str],
    inputs: Sequence[Sequence],
    function: str = "f",
    limits: Limits = DEFAULT_LIMITS,
) -> list[Behaviour]:
    """What `function` of each program returns for each list of arguments.

    Equal programs are run once. All share one sandboxed process, since starting one costs more
    than running a small program; if that process does not come to a good end, each gets its own.
    A program made to harm could spoil the results of those beside it (never learn an expected
    value): run those of strangers one by one.

    Args:
        programs: texts that define `function`; they may be broken.
        inputs: lists of JSON arguments.

    Raises:
        SandboxUnavailable: this machine cannot confine programs; nothing was run.
    """
    different = list(dict.fromkeys(programs))
    found = _run_together(different, inputs, function, limits)
    if found is None:  # one of them took all the time or memory
        alone = [_run_together([program], inputs, function, limits) for program in different]
        found = [one[0] if one else (None,) * len(inputs) for one in alone]
    by_text = dict(zip(different, found, strict=True))
    return [by_text[program] for program in programs]


def passing(did: Sequence[Behaviour], expected: Sequence[Any]) -> list[int]:
    """Places of the programs that give the expected values on the first `len(expected)` inputs.

    Raises:
        ValueError: more values than inputs.
    """
    if did and len(expected) > len(did[0]):
        raise ValueError(f"{len(expected)} expected values for {len(did[0])} inputs")
    wanted = tuple(json.dumps(value) for value in expected)
    return [i for i, behaviour in enumerate(did) if behaviour[: len(wanted)] == wanted]


def clusters(did: Sequence[Behaviour], members: Sequence[int] | None = None) -> list[list[int]]:
    """Groups of programs that behave alike on every input, the largest first.

    Programs without any value are in no group. Of groups of one size the one met first leads.

    Args:
        members: the places to group, all if None.
    """
    groups: dict[Behaviour, list[int]] = {}
    for i in range(len(did)) if members is None else members:
        if any(value is not None for value in did[i]):
            groups.setdefault(did[i], []).append(i)
    return sorted(groups.values(), key=len, reverse=True)  # a stable sort


def _run_together(
    programs: Sequence[str], inputs: Sequence[Sequence], function: str, limits: Limits
) -> list[Behaviour] | None:
    """The behaviours, or None if the process did not hand back all of them, or something else."""
    harness = _HARNESS.format(sources=json.dumps(list(programs)), name=function)
    _, calls = call(harness, "all_outcomes", [[list(given)] for given in inputs], limits)
    rows = [outcome.value for outcome in calls if outcome.error is None]
    if len(rows) < len(inputs) or not all(_is_row(row, len(programs)) for row in rows):
        return None
    return list(zip(*rows, strict=True)) if rows else [()] * len(programs)


def _is_row(row: Any, n: int) -> bool:
    """A text or None for each of n programs; one of them may have written anything here."""
    whole = isinstance(row, list) and len(row) == n
    return whole and all(value is None or isinstance(value, str) for value in row)
