"""Losses: pure functions of tensors.

B batch, T time, V vocabulary. A loss here never sees a model or a tokenizer, so it can be called
on four hand-written numbers and compared with any other implementation.
"""

import math

import torch
import torch.nn.functional as F

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


def perplexity(mean_nats: float) -> float:
    """e to the mean loss: the number of equally likely tokens the model hesitates between.

    Raises:
        ValueError: the loss is negative, which no average of -log(probability) can be.
    """
    mean_nats = float(mean_nats)
    if mean_nats < 0:
        raise ValueError(f"mean_nats={mean_nats}: a mean of -log(probability) cannot be negative")
    return math.exp(mean_nats)
