"""Train a model for the grid its weights will be rounded to.

Rounding has slope zero almost everywhere, so nothing would learn through it. The straight-through
estimator (Bengio et al. 2013) rounds on the way forward and pretends on the way back that it did
not: the gradient of the rounded weight is given to the weight.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minillm.adapt.parts import find_parts
from minillm.adapt.quant import Format, dequantize, quantize


def fake_quantize(weight: Tensor, format: Format) -> Tensor:
    """The rounded weight, with the gradient of the weight itself: (D, C) → (D, C)."""
    rounded = dequantize(quantize(weight, format)).to(weight.dtype)
    return weight + (rounded - weight).detach()


class FakeQuantize(nn.Module):
    """`fake_quantize` as PyTorch's parametrizations want it."""

    def __init__(self, format: Format):
        super().__init__()
        self.format = format

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, self.format)


def start_qat(model: nn.Module, format: Format, targets: Iterable[str]) -> None:
    """Let the named layers compute with rounded weights while they train, in place.

    Raises:
        ValueError: a name that fits nothing, or only a part of a fused layer.
    """
    parts = find_parts(model, targets)
    if wrong := [name for name, part in parts.items() if name != part.layer]:
        raise ValueError(f"{wrong} are parts of fused layers; only whole layers are quantised")
    for name in parts:
        parametrize.register_parametrization(
            model.get_submodule(name), "weight", FakeQuantize(format)
        )


@torch.no_grad()
def finish_qat(model: nn.Module) -> None:
    """Keep the rounded weights and compute plainly again, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
