"""Group relative policy optimisation: PPO's clipped step, with the other answers as the baseline.

(Shao et al. 2024, §4; DeepSeek-AI 2025, R1.) How the losses of single tokens become one number
decides what a long answer weighs, and the published variants differ in little else.

Shapes: B rows (P prompts times G answers), T time. Masks bool, True = an action.
"""

from __future__ import annotations

from torch import Tensor

from minillm.align.logprobs import check_mask, masked_mean, masked_row_mean, masked_sum
from minillm.align.ppo import clipped_surrogate, kl_estimate

AVERAGES = ("sequence", "token", "constant")


def average(x: Tensor, mask: Tensor, by: str = "sequence", length: int | None = None) -> Tensor:
    """One number for the whole batch.

    "sequence": mean over rows of the mean over a row's tokens (Shao et al. 2024, eq. 3): every
    answer weighs the same, so a token of a long answer counts little, and rambling wrongly is
    cheap. "token": mean over all tokens (Yu et al. 2025, DAPO, §3.3): long answers weigh more.
    "constant": sum over tokens, divided by rows times `length`, the same for all batches (Liu et
    al. 2025, Dr. GRPO): a token weighs the same whatever came with it.

    Args:
        x: (B, T).
        mask: bool (B, T).
        length: for "constant": usually `max_new_tokens`.

    Returns:
        A scalar. Rows without actions add 0 (and, but for "token", count as rows).

    Raises:
        ValueError: an unknown average, or a length missing or without use.
    """
    if by not in AVERAGES:
        raise ValueError(f"by={by!r}: expected one of {AVERAGES}")
    if (by == "constant") != (length is not None) or (length is not None and length < 1):
        raise ValueError(
            f"by={by!r}, length={length}: a length of at least 1 belongs to 'constant'"
        )
    if by == "token":
        return masked_mean(x, mask)
    if by == "sequence":
        return masked_row_mean(x, mask).mean()
    return masked_sum(x, mask).sum() / (len(x) * length)


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    by: str = "sequence",
    length: int | None = None,
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Clipped policy loss with one advantage a row, plus β times the k3 estimate of the KL.

    Args:
        log_probs: (B, T), with gradients.
        old_log_probs: (B, T), of the policy that sampled.
        advantages: (B,), `group_advantages(…).flatten()`.
        mask: bool (B, T).
        clip, clip_high: see `ppo.clipped_surrogate`.
        by, length: see `average`.
        ref_log_probs: (B, T), of the policy to stay near; needed if beta is not 0.
        beta: price of the KL, at least 0.

    Returns:
        A scalar. Groups of equal rewards add nothing to it but the KL.

    Raises:
        ValueError: shapes that do not fit, a beta without a reference, or an unknown average.
    """
    check_mask(mask, log_probs, old_log_probs)
    if advantages.shape != mask.shape[:1]:
        raise ValueError(
            f"advantages {tuple(advantages.shape)}: expected ({len(mask)},), one a row"
        )
    if beta < 0 or (beta > 0 and ref_log_probs is None):
        raise ValueError(f"beta={beta}: expected at least 0, and ref_log_probs if it is above")
    losses = clipped_surrogate(log_probs, old_log_probs, advantages[:, None], clip, clip_high)
    if beta:
        check_mask(mask, ref_log_probs)
        losses = losses + beta * kl_estimate(log_probs, ref_log_probs, "k3")
    return average(losses, mask, by, length)
