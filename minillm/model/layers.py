"""Norms and MLPs: what a block does to each position alone.

Shapes: B batch, T time, C channels (d_model), F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.config import GATED_MLPS, ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": partial(F.gelu, approximate="tanh"),
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The nonlinearity of an MLP by the name in ``ModelConfig.mlp``; of the gate if it is gated."""
    return ACTIVATIONS[name]


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The normalisation over the last axis (``width``, default d_model) of this configuration."""
    width = config.d_model if width is None else width
    if config.norm == "rms":
        return RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm`, trained in a third of the time on CPUs, where its gradient is many small steps.

    (…, C) → (…, C): each position divided by its root mean square, then times channel weights
    (Zhang and Sennrich 2019, eq. 4).
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32:
            return FewStepsRMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


class FewStepsRMSNorm(torch.autograd.Function):
    """RMSNorm whose backward pass borrows layer norm's fused kernel."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (…, 1): 1 / rms
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        # Layer norm with a mean of 0 is RMSNorm, but its gradient also loses its own mean: what
        # the subtraction of the mean would take away. We put it back.
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, weight.shape, torch.zeros_like(scale), scale, weight, None,
            [True, ctx.needs_input_grad[1], False],
        )  # fmt: skip
        lost = torch.matmul(gradient, weight)[..., None].mul_(scale).div_(x.shape[-1])
        return dx.add_(lost), dweight, None


class MLP(nn.Module):
    """Two matrices with a nonlinearity between them (Vaswani et al. 2017, §3.3).

    (B, T, C) → (B, T, C). Each position is transformed alone.
    """

    def __init__(self, config: ModelConfig, width: int | None = None):
        super().__init__()
        width = config.d_ff if width is None else width
        self.up = nn.Linear(config.d_model, width, bias=config.bias)
        self.down = nn.Linear(width, config.d_model, bias=config.bias)
        self.activation = activation(config.mlp)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """An MLP whose hidden units are switched by a second projection (Shazeer 2020, §2).

    (B, T, C) → (B, T, C). SwiGLU or GeGLU, after the function that bends the gate. Gate and up
    share one matrix product; the gate comes first.
    """

    def __init__(self, config: ModelConfig, width: int | None = None):
        super().__init__()
        width = config.d_ff if width is None else width
        self.gate_up = nn.Linear(config.d_model, 2 * width, bias=config.bias)
        self.down = nn.Linear(width, config.d_model, bias=config.bias)
        self.activation = activation(config.mlp)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x), self.activation))


def gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Hidden units switched by their gates: (…, 2F), the gates first → (…, F)."""
    if activation is F.silu and torch.is_grad_enabled():
        return SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


class SwiGLU(torch.autograd.Function):
    """silu(gate) · up, keeping for the backward pass only what it was given.

    The gradients of both are written into one tensor, not copied together.
    """

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        ctx.save_for_backward(gate_up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        d_gate, d_up = both.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=d_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=d_gate)
        return both


def make_mlp(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The MLP of this configuration with ``width`` hidden units (default d_ff)."""
    kind = GatedMLP if config.mlp in GATED_MLPS else MLP
    return kind(config, width)
