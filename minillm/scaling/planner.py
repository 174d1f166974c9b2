"""From a budget of processors and days to a model, its data, its layout and its price.

N parameters, D tokens, C floating-point operations of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minillm.scaling.laws import FLOPS_PER_WEIGHT
from minillm.scaling.published import twenty_tokens
from minillm.train.accounting import StateBytes, state_bytes
from minillm.train.layout import Layout

ASPECT = 128  # width over layers; the loss hardly depends on it (Kaplan et al. 2020, §3.1)
HEAD = 128  # widths are multiples of it
ROOM = 0.9  # of the memory may be planned; the rest is for buffers and fragments


@dataclass(frozen=True)
class Gpu:
    """What one processor can do at best, by its maker's data sheet."""

    flops: float  # a second, dense 16-bit matrix products
    memory: float  # bytes
    node: int = 8  # how many share a machine, and its fast links


# NVIDIA's data sheets; where they state "with sparsity", half of it.
GPUS = {
    "V100": Gpu(125e12, 32e9),
    "A100": Gpu(312e12, 80e9),
    "H100": Gpu(989e12, 80e9),
    "H200": Gpu(989e12, 141e9),
}
# DeepSeek-V3's report (2024, table 1) counts 2 dollars an hour for an H800.
DOLLARS_PER_HOUR = 2.0


@dataclass(frozen=True)
class Memory:
    """Bytes on each processor: what stays from step to step, and what a step keeps for backward."""

    state: StateBytes
    activations: float

    @property
    def total(self) -> float:
        return self.state.total + self.activations


@dataclass(frozen=True)
class Plan:
    """What a budget buys."""

    flops: float
    n_parameters: float
    n_tokens: float
    n_layers: int
    d_model: int
    layout: Layout
    memory: Memory
    gpu_hours: float
    dollars: float

    def __str__(self) -> str:
        layout, state = self.layout, self.memory.state
        gigabytes = {
            "weights": state.weights,
            "gradients": state.gradients,
            "optimiser": state.optimizer,
            "activations": self.memory.activations,
        }
        parts = ", ".join(f"{name} {n_bytes / 1e9:.1f}" for name, n_bytes in gigabytes.items())
        return (
            f"budget   {self.gpu_hours:,.0f} hours: {self.flops:.1e} FLOPs, ${self.dollars:,.0f}\n"
            f"model    {self.n_parameters / 1e9:,.1f} billion parameters: "
            f"{self.n_layers} layers of width {self.d_model:,}\n"
            f"data     {self.n_tokens / 1e9:,.0f} billion tokens\n"
            f"layout   {layout.data} copies × {layout.tensor} slices of each matrix × "
            f"{layout.pipeline} stages\n"
            f"memory   {self.memory.total / 1e9:.0f} GB each: {parts}"
        )


def plan(
    gpu: str,
    n_gpus: int,
    days: float,
    *,
    utilization: float = 0.4,
    dollars_per_hour: float = DOLLARS_PER_HOUR,
    optimum: Callable[[float], tuple[float, float]] = twenty_tokens,
    context: int = 4096,
) -> Plan:
    """The best dense model for `n_gpus` processors and so many days.

    Args:
        gpu: one of `GPUS`.
        utilization: share of the peak that the training reaches (MFU); published runs reach 0.35
            to 0.55.
        optimum: C -> (N, D), for example the `optimum` of a fitted law.
        context: tokens a sequence; a micro-batch is one sequence.

    Raises:
        ValueError: an unknown processor, an impossible number, or no layout fits into memory.
    """
    if gpu not in GPUS:
        raise ValueError(f"gpu={gpu!r}: expected one of {', '.join(GPUS)}")
    if n_gpus < 1 or not days > 0 or not 0 < utilization <= 1:
        raise ValueError(
            f"n_gpus={n_gpus}, days={days}, utilization={utilization}: expected at least one "
            "processor, some time, and a share of the peak above 0 and at most 1"
        )
    hours = 24 * days * n_gpus
    flops = budget(gpu, hours, utilization)
    n, d = optimum(flops)
    n_layers, d_model = shape(n)
    layout, memory = best_layout(gpu, n_gpus, n_layers, d_model, context)
    return Plan(flops, n, d, n_layers, d_model, layout, memory, hours, hours * dollars_per_hour)


def budget(gpu: str, hours: float, utilization: float) -> float:
    """C that so many hours of one processor are good for."""
    return GPUS[gpu].flops * utilization * 3600 * hours


def training_hours(n: float, d: float, gpu: str, utilization: float) -> float:
    """Hours of one processor that N parameters need for D tokens."""
    return FLOPS_PER_WEIGHT * n * d / (GPUS[gpu].flops * utilization * 3600)


def shape(n: float) -> tuple[int, int]:
    """Layers and width of a dense Transformer of about N weights: N = 12 · layers · width².

    Large models get layers and heads in eights, which divide well among processors.
    """
    layers = max(1, round((n / (12 * ASPECT**2)) ** (1 / 3)))
    eights = 8 if layers >= 32 else 1
    layers = round(layers / eights) * eights
    width = math.sqrt(n / (12 * layers))
    return layers, max(1, round(width / (eights * HEAD))) * eights * HEAD


def memory_per_gpu(n_layers: int, d_model: int, layout: Layout, context: int = 4096) -> Memory:
    """Bytes of mixed-precision Adam on each processor; one sequence a micro-batch.

    Tensor and pipeline split everything; the processors of `layout.data` split the optimiser's
    state (ZeRO stage 1). Each layer keeps its input, 2 bytes a number, and computes the rest again;
    while it does, one layer holds 34 bytes a number (Korthikanti et al. 2022, §4 and 5, without the
    attention scores, which a fused kernel never stores). Of a pipeline's stages the first holds as
    many micro-batches as there are stages, so splitting the layers saves no inputs.
    """
    own = 12 * n_layers * d_model**2 / (layout.tensor * layout.pipeline)
    numbers = context * d_model / layout.tensor
    state = state_bytes(own, stage=1, n_processes=layout.data)
    return Memory(state, activations=numbers * (2 * n_layers + 34))


def best_layout(
    gpu: str, n_gpus: int, n_layers: int, d_model: int, context: int = 4096
) -> tuple[Layout, Memory]:
    """The layout that fits with the fewest cuts through the model.

    Every cut costs: a tensor cut talks in every layer, so it stays within a machine; a pipeline
    cut leaves processors idle. What remains splits the batch, which talks once a step.

    Raises:
        ValueError: nothing fits; says how much the best layout lacks.
    """
    tried = []
    for layout in _layouts(n_gpus, GPUS[gpu].node, n_layers, d_model // HEAD):
        memory = memory_per_gpu(n_layers, d_model, layout, context)
        if memory.total <= ROOM * GPUS[gpu].memory:
            return layout, memory
        tried.append(memory.total)
    raise ValueError(
        f"{n_layers} layers of width {d_model} need {min(tried) / 1e9:.0f} GB on each of {n_gpus} "
        f"{gpu}s at best; {ROOM * GPUS[gpu].memory / 1e9:.0f} GB are there: take more processors"
    )


def _layouts(n_gpus: int, node: int, n_layers: int, n_heads: int) -> Iterator[Layout]:
    """All ways to divide the processors, those with the fewest cuts of the model first."""
    tensors = [t for t in (1, 2, 4, 8) if t <= node and n_gpus % t == 0 and n_heads % t == 0]
    cuts = [
        (tensor, pipeline)
        for tensor in tensors
        for pipeline in range(1, n_layers + 1)
        if n_gpus % (tensor * pipeline) == 0 and n_layers % pipeline == 0
    ]
    for tensor, pipeline in sorted(cuts, key=lambda cut: (cut[0] * cut[1], cut[1])):
        yield Layout(data=n_gpus // (tensor * pipeline), tensor=tensor, pipeline=pipeline)
