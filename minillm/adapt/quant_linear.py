"""Linear layers that keep their weights in few bits.

Shapes: B batch, T time, C inputs, D outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.quant import Format, Quantized, RoundedScales, dequantize


class QuantLinear(nn.Module):
    """A frozen linear layer in a `Format`: (…, C) → (…, D).

    The weight is unpacked for every use and dropped again, also in the backward pass, so that
    memory holds the codes alone.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None):
        super().__init__()
        self.format = weight.format
        self.out_features = len(weight.codes)
        self.in_features = weight.codes.shape[1] * (2 if weight.format.bits <= 4 else 1)
        self.register_buffer("codes", weight.codes)
        self._hold("scales", weight.scales)
        self._hold("offsets", weight.offsets)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def _hold(self, name: str, scales: Tensor | RoundedScales | None) -> None:
        """Numbers as buffers, so that they move between devices with the model."""
        if isinstance(scales, RoundedScales):
            self.register_buffer(f"{name}_codes", scales.rounded.codes)
            self.register_buffer(f"{name}_scales", scales.rounded.scales)
            self.register_buffer(f"{name}_mean", scales.mean)
            setattr(self, f"{name}_shape", scales.shape)
        else:
            self.register_buffer(name, scales)

    def _held(self, name: str) -> Tensor | RoundedScales | None:
        if hasattr(self, name):
            return getattr(self, name)
        codes, scales = getattr(self, f"{name}_codes"), getattr(self, f"{name}_scales")
        rounded = Quantized(codes, scales, None, Format("absmax", 8, 256))
        return RoundedScales(rounded, getattr(self, f"{name}_mean"), getattr(self, f"{name}_shape"))

    @property
    def quantized(self) -> Quantized:
        return Quantized(self.codes, self._held("scales"), self._held("offsets"), self.format)

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, float32 (D, C); made anew on every call."""
        return dequantize(self.quantized)

    def forward(self, x: Tensor) -> Tensor:
        return FrozenLinear.apply(x, self)


class FrozenLinear(torch.autograd.Function):
    """x Wᵀ + b for a weight that does not learn: keeps the layer for backward, not the weight."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: QuantLinear) -> Tensor:
        ctx.layer = layer
        y = F.linear(x, layer.weight.to(x.dtype))
        # Added here, because the fused form gives a view, and adapters could not write into that.
        return y if layer.bias is None else y.add_(layer.bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype), None
