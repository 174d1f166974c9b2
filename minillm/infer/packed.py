"""A copy of a model whose weights are laid out for decoding on a CPU.

A decoding step multiplies few rows with every weight, so its time is the time to read the
weights. How fast they can be read depends on their order in memory, and the order that suits one
row does not suit eight; this module keeps both.

Shapes: C inputs of a layer, D outputs of a layer, n channels of a head that rotate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minillm.model.positions import both_halves, rotate, rotate_by_halves
from minillm.model.transformer import Transformer


def packed(model: Transformer) -> Transformer:
    """The same model, faster to decode with on a CPU, for three times the memory.

    Weights are shared with `model` where the layout stays; the packed ones are copies, so later
    training of `model` does not reach them. On other devices, or where PyTorch was built without
    oneDNN, returns `model` itself.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    return with_layers(model, PackedLinear)


def with_layers(model: Transformer, make_linear: Callable[[nn.Linear], nn.Module]) -> Transformer:
    """A copy that shares the weights, with what takes long replaced for inference.

    That is linear layers, RMSNorms and half-split rotations.
    """
    fast = copy.deepcopy(model, memo={id(p): p for p in model.parameters()})
    one_rotation = OneRotation()
    for module in list(fast.modules()):
        if getattr(module, "rotate", None) is rotate:
            module.rotate = one_rotation
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32:
                setattr(module, name, make_linear(layer))
            elif isinstance(layer, nn.RMSNorm):
                setattr(module, name, FewStepsNorm(layer))
    return fast


class OneRotation:
    """`rotate` for inference: all layers turn by the same angles, so the first makes the tables."""

    made: tuple[Tensor | None, ...] = (None, None, None)  # the last cosines, and both tables

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if 2 * cos.shape[-1] < x.shape[-1]:
            return rotate(x, cos, sin)
        given, *tables = self.made
        if given is not cos:
            tables = both_halves(cos, sin)
            self.made = cos, *tables
        return rotate_by_halves(x, *tables)


class FewStepsNorm(nn.Module):
    """RMSNorm for inference, in four small operations where PyTorch takes twice as many.

    x·w / √(mean(x²) + eps) = x·w√C / √(‖x‖² + C·eps): with w√C and √(C·eps) known beforehand,
    what is left is a norm, a hypotenuse, a product and a quotient.
    """

    @torch.no_grad()
    def __init__(self, norm: nn.RMSNorm):
        super().__init__()
        C = norm.weight.numel()
        self.weight = norm.weight
        self.stretch = norm.weight * C**0.5
        self.leg = norm.weight.new_tensor(C * norm.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * self.stretch).div_(length.hypot_(self.leg))


class PackedLinear(nn.Module):
    """A linear layer for inference: (…, C) → (…, D), the result of the layer it is made from."""

    @torch.no_grad()
    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.by_input = layer.weight.t().contiguous()  # for one row
        # For several rows: oneDNN's own blocked order (8 is its hint for the number of rows).
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[-1]:
            return torch.ops.mkldnn._linear_pointwise(x, self.blocked, self.bias, "none", [], "")
        y = x @ self.by_input
        return y if self.bias is None else y + self.bias
