"""What this machine can do: the two numbers every later measurement is compared with."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Machine:
    """Measured, not read off a data sheet."""

    device: str
    cores: int  # processor cores this process may use
    threads: int  # CPU threads PyTorch computes with
    memory: int  # bytes of the machine's memory, or of the GPU's
    flops: float  # floating-point operations per second of a float32 matrix product
    bandwidth: float  # bytes per second at which a matrix streams through a product with a vector

    def decode_limit(self, weight_bytes: int) -> float:
        """Most tokens per second for one text: each token reads every weight once."""
        return self.bandwidth / weight_bytes


def measure(device: torch.device | str = "cpu", *, size: int | None = None) -> Machine:
    """Measure arithmetic and memory of a device in about two seconds.

    Args:
        device: where to measure.
        size: rows of the square matrix that is streamed, 4·size² bytes; chosen far larger than
            any cache when None (0.27 GB on a CPU, 1 GB on a GPU).
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    size = size or (8192 if on_cpu else 16384)
    big = torch.ones(size, size, device=device)
    vector = torch.ones(size, device=device)
    seconds_vector = fastest(lambda: big @ vector, device)
    n = min(1536 if on_cpu else 8192, size)
    square = big[:n, :n].contiguous()
    seconds_matrix = fastest(lambda: square @ square, device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = psutil.virtual_memory().total
    return Machine(
        device=str(device),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        memory=memory,
        flops=2 * n**3 / seconds_matrix,  # n² dot products, n multiplications and n additions each
        bandwidth=big.nbytes / seconds_vector,
    )


def fastest(work: Callable[[], object], device: torch.device | str = "cpu", runs: int = 7) -> float:
    """Seconds of the fastest of several runs: what else the machine does only ever adds time."""
    work()  # the first call also pays for setting up
    times = []
    for _ in range(runs):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device | str) -> None:
    """A GPU answers before it has finished; wait for it."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
