"""Muon: an optimiser that moves a matrix by the same amount in all of its directions.

A gradient of a matrix is a sum of rank-one moves, a few large and most of them small. Muon keeps
the directions and makes all the sizes one: U S Vᵀ becomes U Vᵀ. An SVD would be slow, a polynomial
of matrix products comes close enough. Vectors, embeddings and the output stay with AdamW.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; weight decay
and the size of the step from Liu et al. 2025, "Muon is Scalable for LLM Training", §2.2.
"""

import math

import torch
from torch import Tensor, nn

# The quintic a·s + b·s³ + c·s⁵ lifts small s fast, and keeps the rest between about 0.7 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Nearly U Vᵀ for a matrix U S Vᵀ: the singular values are driven into 0.7 … 1.2.

    Args:
        matrix: (…, D, C), any shape; leading dimensions count matrices.
        steps: how often the quintic is applied.
        dtype: computed in this type: by default bfloat16 on a GPU, where it is fast and precise
            enough, and float32 elsewhere.

    Raises:
        ValueError: a vector or a number.
    """
    if matrix.ndim < 2:
        raise ValueError(f"shape {tuple(matrix.shape)}: expected a matrix, or several of them")
    a, b, c = QUINTIC
    x = matrix.to(dtype or (torch.bfloat16 if matrix.is_cuda else torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products below are then the smaller ones
    # The Frobenius norm is at least the largest singular value: all of them start within 0 … 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the groups with ``rule="muon"``, AdamW for the others; one learning rate for both.

    A Muon update is scaled to the size that AdamW's usually have, so the rate and the weight decay
    of an AdamW run carry over.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        dtype: torch.dtype | None = None,
    ):
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr={lr}, weight_decay={weight_decay}: neither may be negative")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
        super().__init__(groups, {**defaults, "rule": "adamw"})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            move = self._muon if group["rule"] == "muon" else _adamw
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    move(p, self.state[p], group)

    def _muon(self, p: Tensor, state: dict, group: dict) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(p)
        mu = group["momentum"]
        state["momentum"].lerp_(p.grad, 1 - mu)
        ahead = p.grad.lerp(state["momentum"], mu)  # Nesterov: where the momentum will be
        # An orthogonal D × C matrix has entries of RMS 1 / √max(D, C); AdamW's are about 0.2.
        size = 0.2 * math.sqrt(max(p.shape[-2:]))
        p.add_(newton_schulz(ahead, dtype=self._dtype), alpha=-group["lr"] * size)


def _adamw(p: Tensor, state: dict, group: dict, eps: float = 1e-8) -> None:
    if not state:
        state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
    (b1, b2), state["step"] = group["betas"], state["step"] + 1
    state["mean"].lerp_(p.grad, 1 - b1)
    state["square"].lerp_(p.grad.square(), 1 - b2)
    # Both averages began at zero; the divisions make up for it.
    size = (state["square"] / (1 - b2 ** state["step"])).sqrt_().add_(eps)
    p.addcdiv_(state["mean"], size, value=-group["lr"] / (1 - b1 ** state["step"]))


def muon(model: nn.Module, lr: float, weight_decay: float = 0.1) -> Muon:
    """Muon over the matrices inside the blocks, AdamW over the rest: to be passed to `train`.

    Embeddings and the output are looked up row by row: their matrices have no directions to
    equalise. As in `adamw`, vectors are not decayed.

    Raises:
        ValueError: no matrix inside ``blocks`` is trainable.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if p.ndim >= 2 and "blocks." in name]
    if not hidden:
        raise ValueError("no trainable matrix inside blocks: Muon has nothing to do; use adamw")
    others = [p for name, p in named if p.ndim >= 2 and "blocks." not in name]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [
        {"params": hidden, "rule": "muon"},
        {"params": others},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return Muon([g for g in groups if g["params"]], lr, weight_decay)
