"""Replace a matrix by a product of two thin ones.

The best approximation of rank r keeps the r largest singular values (Eckart & Young 1936), and its
squared error is the sum of the squares of the others. But what should stay close is the layer's
output on real inputs: weighing the inputs first makes it so (Wang et al. 2024, SVD-LLM, §3.1).

Shapes: C columns (inputs of a layer), D rows (its outputs), r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def factor(weight: Tensor, rank: int, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two thin matrices whose product is closest to the weight.

    Args:
        weight: (D, C).
        rank: from 1 to min(D, C).
        gram: (C, C), XᵀX of the layer's inputs; then the *outputs* are closest. None weighs all
            inputs alike.

    Returns:
        left (D, r), right (r, C).

    Raises:
        ValueError: a rank outside 1 … min(D, C), or a gram of another size.
    """
    D, C = weight.shape
    if not 1 <= rank <= min(D, C):
        raise ValueError(f"rank={rank}: expected 1 to {min(D, C)} for a {D} × {C} matrix")
    if gram is None:
        u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        right = v[:rank]
    else:
        if gram.shape != (C, C):
            raise ValueError(f"gram has shape {tuple(gram.shape)}: expected ({C}, {C})")
        # ‖ΔW Xᵀ‖² = ‖ΔW L‖² for any L with L Lᵀ = XᵀX: approximate W L, then divide L out.
        damped = gram.double() + 1e-6 * gram.diagonal().mean() * torch.eye(C, device=gram.device)
        L = torch.linalg.cholesky(damped)
        u, s, v = torch.linalg.svd(weight.detach().double() @ L, full_matrices=False)
        right = torch.linalg.solve_triangular(L, v[:rank], upper=False, left=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), right.to(weight.dtype)


def worthwhile_rank(n_rows: int, n_columns: int) -> int:
    """The largest rank at which the two factors are smaller than the matrix."""
    return (n_rows * n_columns - 1) // (n_rows + n_columns)


def rank_for_error(weight: Tensor, error: float) -> int:
    """The smallest rank whose relative squared error is at most ``error``, from the spectrum.

    Raises:
        ValueError: an error outside 0 … 1.
    """
    if not 0 <= error <= 1:
        raise ValueError(f"error={error}: expected a share between 0 and 1")
    squares = torch.linalg.svdvals(weight.detach().double()).square()
    lost = squares.flip(0).cumsum(0).flip(0) / squares.sum()  # lost[r] with rank r
    return max(1, int((lost > error).sum()))


def factorised(layer: nn.Linear, rank: int, gram: Tensor | None = None) -> nn.Sequential:
    """A linear layer as two thin ones, first (r, C) without bias, then (D, r)."""
    left, right = factor(layer.weight, rank, gram)
    first = nn.Linear(right.shape[1], rank, bias=False)
    second = nn.Linear(rank, left.shape[0], bias=layer.bias is not None)
    first.weight, second.weight = nn.Parameter(right), nn.Parameter(left)
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, second)
