"""How many processes share a model, and how. `parallel.py` does it; a plan needs only this."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass


@dataclass(frozen=True)
class Layout:
    """How many processes share the work, each way; they multiply.

    Attributes:
        data: copies of the whole model, each with rows of its own.
        shard: as ``data``, but each keeps only a part of weights, gradients and optimiser state
            (ZeRO-3, Rajbhandari et al. 2020; FSDP).
        tensor: slices of each matrix, the same rows.
        pipeline: stages of consecutive layers, the same rows.
        expert: as ``shard``, but each keeps whole experts, and tokens travel to them.

    Raises:
        ValueError: a number below 1.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1

    def __post_init__(self):
        for name, n in asdict(self).items():
            if not isinstance(n, int) or n < 1:
                raise ValueError(f"{name}={n!r}: expected a number of processes, at least 1")

    @property
    def n_processes(self) -> int:
        return math.prod(astuple(self))
