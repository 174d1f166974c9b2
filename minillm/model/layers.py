"""Everything in a block that is not attention: norms, positions, the MLP.

Shapes: B batch, T time, C channels (d_model), H heads, D head size, F MLP width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.config import ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    """The normalisation over the last axis that the configuration names."""
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class MLP(nn.Module):
    """Two matrices with a GELU between them (Vaswani et al. 2017, §3.3, with GPT-2's activation).

    (B, T, C) → (B, T, C). Each position is transformed alone.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """An MLP whose hidden units are switched by a second projection (Shazeer 2020, §2).

    (B, T, C) → (B, T, C). Gate and up share one matrix product; the gate comes first.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def make_mlp(config: ModelConfig) -> nn.Module:
    return SwiGLU(config) if config.mlp == "swiglu" else MLP(config)


def rope_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each position turns each pair of channels.

    Pair i of a vector at position t turns by t · base^(−2i/D) (Su et al. 2021, eq. 15).

    Args:
        positions: int64 of any shape (…).

    Returns:
        cos, sin: float32, (…, D/2).
    """
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * base ** (-pairs / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i together with channel i + D/2 ("half-split" pairs, as in LLaMA).

    Args:
        x: (B, H, T, D) queries or keys.
        cos, sin: (T, D/2) or (B, 1, T, D/2).
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
