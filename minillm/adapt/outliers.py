"""A few input channels are far louder than the rest, and a shared scale drowns the others.

Three answers: multiply those channels apart in full precision (LLM.int8()), hand a part of their
loudness to the weights (SmoothQuant), or protect the weights that meet them (AWQ).

Shapes: N tokens, C inputs of a layer, D outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.adapt.quant import Format, dequantize, quantize

INT8 = Format("absmax", 8, 0)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ with both rounded to 8 bits, a scale for each row of either: (N, C), (D, C) → (N, D).

    The sum of products is exact, in integers; the scales are multiplied in once at the end
    (Dettmers et al. 2022, §3.1).
    """
    x_codes, x_scales = int8_rows(x)
    w_codes, w_scales = int8_rows(weight)
    products = x_codes.to(torch.int32) @ w_codes.to(torch.int32).T
    return products * x_scales * w_scales.T


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 (N, C), −127 … 127, and the scale of each row, float32 (N, 1)."""
    rounded = quantize(x, INT8)
    return (rounded.codes.to(torch.int16) - 128).to(torch.int8), rounded.scales


def llm_int8(x: Tensor, weight: Tensor, threshold: float = 6.0) -> Tensor:
    """LLM.int8(): channels that reach ``threshold`` are multiplied in full precision, the rest in 8
    bits (Dettmers et al. 2022, §3.2).

    Args:
        x: float (N, C); weight: float (D, C).

    Returns:
        (N, D).
    """
    loud = outlier_channels(x, threshold)
    quiet = int8_matmul(x[:, ~loud], weight[:, ~loud]) if not loud.all() else 0
    return quiet + x[:, loud] @ weight[:, loud].T


def outlier_channels(x: Tensor, threshold: float = 6.0) -> Tensor:
    """bool (C,): channels in which some token reaches the threshold: (N, C) → (C,)."""
    return x.abs().amax(0) >= threshold


def smoothing_scales(x: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """By what to divide each input channel, and multiply its weights, so that both round well.

    sⱼ = max|xⱼ|^α / max|wⱼ|^(1−α) (Xiao et al. 2023, eq. 4): with α = ½ both end equally loud.

    Args:
        x: (N, C) calibration inputs; weight: (D, C).

    Returns:
        (C,), positive. ``(x / s) @ (weight * s).T`` is ``x @ weight.T``.

    Raises:
        ValueError: alpha outside 0 … 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected 0 (weights decide) to 1 (inputs decide)")
    loud = x.abs().amax(0).clamp(min=1e-5)
    heavy = weight.abs().amax(0).clamp(min=1e-5)
    return loud**alpha / heavy ** (1 - alpha)


def awq_scales(x: Tensor, weight: Tensor, format: Format, n_grid: int = 20) -> Tensor:
    """By what to multiply the weights of each channel before rounding them (and divide after).

    A weight that meets loud inputs should round finely. s = (mean |xⱼ|)^β, with the β in 0 … 1
    whose rounded layer comes closest to the true outputs (Lin et al. 2024, §3.2).

    Args:
        x: (N, C) calibration inputs; weight: (D, C).

    Returns:
        (C,), positive, with geometric mean 1.
    """
    loud = x.abs().mean(0).clamp(min=1e-5)
    target = x @ weight.T
    best, least = torch.ones_like(loud), torch.inf
    for beta in torch.linspace(0, 1, n_grid):
        scales = loud**beta
        scales = scales / scales.log().mean().exp()
        rounded = dequantize(quantize(weight * scales, format)) / scales
        error = (x @ rounded.T - target).square().mean().item()
        if error < least:
            best, least = scales, error
    return best
