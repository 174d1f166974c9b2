"""Losses: pure functions of tensors.

B batch, T time, N positions, C channels, V vocabulary. A loss here never sees a model or a
tokenizer, so it can be called on four hand-written numbers and compared with any other
implementation.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from minillm.data.packing import IGNORE


def next_token_loss(
    logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Cross-entropy of the next token, in nats.

    Args:
        logits: (B, T, V) float, any leading shape; row t scores what comes *after* token t.
        targets: (B, T) int64, the tokens that really came next; IGNORE (-100) is not scored.
        reduction: "mean" over the scored targets, or "sum" (add the sums of several batches and
            divide once by the total count to get the exact mean over all of them).

    Returns:
        A scalar. With nothing to score it is 0.0 with gradient 0, not NaN.

    Raises:
        ValueError: the shapes do not belong together, a target is no index into the vocabulary,
            or the reduction is unknown.

    Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", equation 3.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'sum'")
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not fit: "
            "expected (B, T, V) and (B, T)"
        )
    scored = targets != IGNORE
    vocab_size = logits.shape[-1]
    if not logits.is_cuda:  # on a GPU this would wait for the device; there the kernel asserts
        outside = scored & ((targets < 0) | (targets >= vocab_size))
        if outside.any():
            raise ValueError(
                f"target {int(targets[outside][0])} is outside the vocabulary 0..{vocab_size - 1}; "
                f"use {IGNORE} for positions that are not scored"
            )
    total = F.cross_entropy(
        logits.reshape(-1, vocab_size), targets.reshape(-1), ignore_index=IGNORE, reduction="sum"
    )
    if reduction == "sum":
        return total
    return total / scored.sum().clamp(min=1)


def chunked_loss(
    unembed: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    learned: Iterable[nn.Parameter] = (),
    n_rows: int = 64,
) -> torch.Tensor:
    """`next_token_loss(unembed(hidden), targets, "sum")`, in the memory of a few rows of logits.

    A row of logits is as long as the vocabulary, and training holds three of them: logits,
    probabilities, gradient. Here each chunk's gradient is computed along with its loss, and its
    logits are forgotten before the next.

    Args:
        unembed: (n, C) → (n, V), each row alone.
        hidden: (N, C).
        targets: (N,) int64, IGNORE where nothing is scored.
        learned: parameters inside `unembed` that need a gradient; others get none.
        n_rows: rows of logits at a time, at least 1.

    Raises:
        ValueError: as `next_token_loss`, or a chunk of no rows.
    """
    if n_rows < 1:
        raise ValueError(f"n_rows={n_rows}: expected at least 1")
    if hidden.shape[:-1] != targets.shape or targets.ndim != 1:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not fit: "
            "expected (N, C) and (N,)"
        )
    return _ChunkedLoss.apply(unembed, targets, n_rows, hidden, *learned)


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass and only scaled in the backward pass."""

    @staticmethod
    def forward(ctx, unembed, targets, n_rows, hidden, *learned):
        total = hidden.new_zeros(())
        gradients = [torch.zeros_like(x) for x in (hidden, *learned)]
        rows = gradients[0].split(n_rows)
        wanted = any(ctx.needs_input_grad)
        for h, t, row in zip(hidden.split(n_rows), targets.split(n_rows), rows, strict=True):
            with torch.set_grad_enabled(wanted):
                h = h.detach().requires_grad_(wanted)
                loss = next_token_loss(unembed(h), t, reduction="sum")
            total += loss.detach()
            if wanted:
                found = torch.autograd.grad(loss, (h, *learned))
                row.copy_(found[0])
                for gradient, more in zip(gradients[1:], found[1:], strict=True):
                    gradient += more
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx, scale):
        return None, None, None, *(scale * gradient for gradient in ctx.saved_tensors)


def perplexity(mean_nats: float) -> float:
    """e to the mean loss: the number of equally likely tokens the model hesitates between.

    Raises:
        ValueError: the loss is negative, which no average of -log(probability) can be.
    """
    mean_nats = float(mean_nats)
    if mean_nats < 0:
        raise ValueError(f"mean_nats={mean_nats}: a mean of -log(probability) cannot be negative")
    return math.exp(mean_nats)
