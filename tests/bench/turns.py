"""Contestants in turns: a machine that is busy or grows hot slows all of them alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def in_turns(
    runs: dict[str, Callable[[], Any]],
    rounds: int = 7,
    *,
    n_calls: int = 1,
    n_warm_up: int = 1,
    finish: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of one call of each, and what each returned last.

    Every second round runs backwards, so that nobody always follows the same neighbour.

    Args:
        n_calls: calls in one timing, for what is too short to be timed alone.
        n_warm_up: first rounds that do not count.
        finish: waits for a device that works behind the program's back.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for round_ in range(n_warm_up + rounds):
        for name in list(runs)[:: -1 if round_ % 2 else 1]:
            finish()
            started = time.perf_counter()
            for _ in range(n_calls):
                results[name] = runs[name]()
            finish()
            if round_ >= n_warm_up:
                seconds[name].append((time.perf_counter() - started) / n_calls)
    return {name: statistics.median(times) for name, times in seconds.items()}, results
