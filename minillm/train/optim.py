"""The optimiser and its learning-rate schedule."""

import math

import torch
from torch import nn


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in two groups.

    Matrices (two or more dimensions) are pulled towards zero by `weight_decay`. Biases and norm
    gains are not: they set offsets and scales, and zero is no natural value for them. The update
    is fused into one kernel where the device has one.

    Raises:
        ValueError: nothing is trainable, or lr or weight_decay is negative.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; the betas and the
        groups are those of Brown et al. 2020 (GPT-3), appendix B.
    """
    if lr < 0 or weight_decay < 0:
        raise ValueError(f"lr={lr}, weight_decay={weight_decay}: neither may be negative")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameter: set requires_grad on some")
    groups: dict[tuple, list[nn.Parameter]] = {}
    for p in parameters:
        # One kernel updates a group, so all of it must be spread over processes in the same way.
        groups.setdefault((p.ndim < 2, getattr(p, "device_mesh", None)), []).append(p)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": 0.0 if is_vector else weight_decay}
            for (is_vector, _), group in sorted(groups.items(), key=lambda item: item[0][0])
        ],
        lr=lr,
        betas=betas,
        fused=fused,
    )


def warmup_cosine(
    step: int, *, peak: float, warmup_steps: int, total_steps: int, floor: float = 0.1
) -> float:
    """Learning rate at `step` (counted from 0): a straight line up, then half a cosine down.

    The first step already moves (peak / warmup_steps, not 0); step warmup_steps - 1 is at `peak`;
    from `total_steps` on the rate stays at floor * peak.

    >>> [round(warmup_cosine(s, peak=1, warmup_steps=2, total_steps=6), 3) for s in range(7)]
    [0.5, 1.0, 1.0, 0.868, 0.55, 0.232, 0.1]

    Raises:
        ValueError: a negative step, or a warm-up longer than the run.

    Source: Loshchilov & Hutter 2017, "SGDR", equation 5; warm-up as in Vaswani et al. 2017, §5.3.
    """
    if step < 0:
        raise ValueError(f"step={step}: expected 0 or more")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps}: expected between 0 and total_steps={total_steps}"
        )
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: a fraction of the peak, expected between 0 and 1")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step >= total_steps:
        return peak * floor
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
