"""Where the time of a step goes, one line for each kind of operation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Operation:
    """One kind of operation in a profile, all its calls together."""

    name: str
    calls: int
    seconds: float  # its own, without the operations it calls
    flops: int  # multiply-adds times two; 0 where PyTorch does not count them


def operations(work: Callable[[], object]) -> list[Operation]:
    """Run `work` once under PyTorch's profiler; its operations, the most expensive first.

    Seconds are those of the GPU where there is one, else of the processor. Profiling slows small
    operations down, so trust the shares more than the sum.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    recorded = profile(activities=activities, with_flops=True)
    with _silenced():
        recorded.start()
    try:
        work()
    finally:
        with _silenced():
            recorded.stop()
    found = []
    for row in recorded.key_averages():
        microseconds = row.self_device_time_total if on_gpu else row.self_cpu_time_total
        found.append(Operation(row.key, row.count, microseconds / 1e6, row.flops))
    return sorted(found, key=lambda operation: -operation.seconds)


@contextmanager
def _silenced() -> Iterator[None]:
    """Starting and stopping, the profiler writes notes to the error stream, past Python."""
    stream, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)
        os.close(nowhere)


def profile_table(work: Callable[[], object], n: int = 8) -> str:
    """The `n` most expensive operations of `work` as text, and the rest in one line."""
    found = operations(work)
    total = sum(operation.seconds for operation in found)
    rest = found[n:]
    left = Operation(
        f"{len(rest)} others", sum(o.calls for o in rest), sum(o.seconds for o in rest), 0
    )
    lines = [f"{'operation':58} {'calls':>6} {'ms':>9} {'share':>6} {'GFLOP/s':>8}"]
    for operation in [*found[:n], *([left] if rest else [])]:
        speed = f"{operation.flops / operation.seconds / 1e9:8.0f}" if operation.flops else ""
        share = operation.seconds / total
        lines.append(
            f"{operation.name[:58]:58} {operation.calls:6} {1e3 * operation.seconds:9.2f} "
            f"{share:6.1%} {speed}".rstrip()
        )
    return "\n".join(lines)
