"""GPTQ: round a weight column by column, and let the columns to come make up for each error.

What matters is not the weight but the layer's output on real inputs. With H = XᵀX the squared
error of the output is tr(ΔW H ΔWᵀ). After column j is rounded, the best change of the columns
behind it is known in closed form (Frantar et al. 2023, eq. 2 and 3): it needs row j of the upper
Cholesky factor of H⁻¹, and nothing else.

Shapes: N inputs seen in calibration, C columns (inputs of a layer), D rows (its outputs).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.adapt.quant import Format, Quantized, nearest_codes, pack, quantize, scale_values
from minillm.adapt.quant import levels as levels_of


def gptq(weight: Tensor, gram: Tensor, format: Format, damping: float = 0.01) -> Quantized:
    """Round a matrix so that its products with typical inputs change little.

    Args:
        weight: float (D, C).
        gram: float (C, C), XᵀX of the layer's inputs on calibration text (see `input_grams`).
        format: with groups of columns or whole rows, not one group for the whole matrix.
        damping: this share of the mean diagonal is added to it, so that inputs that hardly occur
            in the calibration do not give huge updates (§3.3).

    Raises:
        ValueError: shapes that do not fit, or a format without groups in a row.
    """
    D, C = weight.shape
    if gram.shape != (C, C):
        raise ValueError(f"gram has shape {tuple(gram.shape)}: expected ({C}, {C}), as the weight")
    if format.group is None or format.double:
        raise ValueError("gptq needs a group of columns, or 0 for whole rows, and plain scales")
    left = weight.detach().double().clone()  # the columns still to be rounded, as updated so far
    factor = inverse_factor(gram, damping)
    group = format.group or C
    codes = torch.empty(D, C, dtype=torch.uint8, device=weight.device)
    scales, offsets = [], []
    table = levels_of(format).to(weight.device).double()
    for j in range(C):
        if j % group == 0:  # the scales of a group are set when its first column is due
            grid = quantize(left[:, j : j + group].float(), Format(format.kind, format.bits, 0))
            scales.append(scale_values(grid.scales))
            offsets.append(None if grid.offsets is None else scale_values(grid.offsets))
        scale = scales[-1][:, 0].double()
        offset = 0.0 if offsets[-1] is None else offsets[-1][:, 0].double()
        codes[:, j] = nearest_codes((left[:, j] - offset) / scale.where(scale != 0, 1.0), format)
        rounded = table[codes[:, j].int()] * scale + offset
        error = (left[:, j] - rounded) / factor[j, j]
        left[:, j:] -= error[:, None] * factor[j, j:]
    return Quantized(
        pack(codes) if format.bits <= 4 else codes,
        torch.cat(scales, dim=1),
        None if offsets[0] is None else torch.cat(offsets, dim=1),
        format,
    )


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped gram's inverse: float64 (C, C)."""
    gram = gram.double()
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped.to(torch.float64)))
    return torch.linalg.cholesky(inverse, upper=True)


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """Squared error of the layer's outputs on the inputs of `gram`, relative to the outputs."""
    difference = (weight - rounded).double()
    gram = gram.double()
    error = ((difference @ gram) * difference).sum()
    return (error / ((weight.double() @ gram) * weight).sum()).item()


@torch.no_grad()
def input_grams(model: nn.Module, layers: list[str], batches: list[Tensor]) -> dict[str, Tensor]:
    """XᵀX of the inputs of the named linear layers: name → float32 (C, C).

    Args:
        batches: int64 (B, T) tokens of calibration text.

    Raises:
        ValueError: a name that is no linear layer.
    """
    grams: dict[str, Tensor] = {}

    def watch(name: str):
        def add(module, inputs):
            x = inputs[0].flatten(0, -2).float()
            grams[name] = grams.get(name, 0) + x.T @ x

        return add

    modules = dict(model.named_modules())
    if wrong := [name for name in layers if not isinstance(modules.get(name), nn.Linear)]:
        raise ValueError(f"no linear layers: {wrong}")
    hooks = [modules[name].register_forward_pre_hook(watch(name)) for name in layers]
    try:
        for tokens in batches:
            model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return grams
