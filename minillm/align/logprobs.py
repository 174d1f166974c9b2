"""How likely a policy finds what was said, token by token, and nothing else.

Every method that aligns or reasons builds on these numbers, and most of their bugs are a mask that
is off by one. So there is one convention, that of `infer.rollout`: position t answers for the
token after token t, targets are IGNORE where the policy did not choose, and wherever they are, a
log-probability is exactly 0.

Shapes: B rows, T time, V vocabulary. Masks are bool, True = an action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.data.packing import IGNORE, Batch
from minillm.model.transformer import Transformer


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of every target, in nats.

    Args:
        logits: (…, V); position t scores what comes after token t.
        targets: int64 (…), IGNORE where nothing counts.
        temperature: of the policy, softmax(logits / temperature); the one it was sampled with.

    Returns:
        (…) float32; 0 with gradient 0 where the target is IGNORE.

    Raises:
        ValueError: shapes that do not belong together, or a temperature that is not positive.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not fit: "
            "expected (…, V) and (…)"
        )
    keep = targets != IGNORE
    chosen = _scores(logits, temperature).gather(-1, targets.where(keep, 0)[..., None])
    return chosen.squeeze(-1).where(keep, 0.0)


def log_probs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """`token_log_probs` of a batch under a model: (B, T) float32, with gradients.

    Only positions with a target are unembedded: prompts and padding would cost B·T·V numbers.
    """
    keep = batch.targets != IGNORE
    hidden = model.hidden(batch.tokens)[keep]  # (N, C)
    chosen = token_log_probs(model.logits(hidden), batch.targets[keep], temperature)
    return chosen.new_zeros(keep.shape).masked_scatter(keep, chosen)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the next token in nats, (…, V) → (…): 0 is certain, ln V knows nothing."""
    scores = _scores(logits, temperature)
    return -(scores.exp() * scores).sum(-1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of each row over its actions, (B, T) → (B,): of log-probs, that of the whole response."""
    check_mask(mask, x)
    return x.where(mask, 0.0).sum(-1)


def masked_row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its actions, (B, T) → (B,); 0 for a row without any."""
    return masked_sum(x, mask) / mask.sum(-1).clamp(min=1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all actions, each weighing the same: a scalar, 0 (not NaN) without any."""
    return masked_sum(x, mask).sum() / mask.sum().clamp(min=1)


def check_mask(mask: Tensor, *others: Tensor) -> None:
    """Refuse a mask that is not bool, or tensors of another shape: broadcasting hides mistakes.

    Raises:
        ValueError: says which.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask is {mask.dtype}: expected bool, True where there is an action")
    for other in others:
        if other.shape != mask.shape:
            raise ValueError(
                f"a mask of shape {tuple(mask.shape)} for a tensor of shape {tuple(other.shape)}: "
                "expected the same"
            )


def _scores(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number above 0")
    return (logits.float() / temperature).log_softmax(-1)
