"""Proximal policy optimisation: learn from samples without running away from where they came from.

(Schulman et al. 2017; on language models Ziegler et al. 2019, Ouyang et al. 2022.)

Shapes: B rows, T time. Masks bool, True = an action. Log-probs are of the actions, as
`align.logprobs` gives them; those of the sampling policy and of the reference carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.align.logprobs import check_mask, masked_mean

KL_KINDS = ("k1", "k2", "k3")


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> Tensor:
    """PPO's loss of every action: −min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π/π_old (eq. 7).

    A good action stops being pushed once it is 1+ε times as likely as when it was sampled, a bad
    one once it is 1−ε times; never is anything kept from coming back.

    Args:
        log_probs: (B, T), with gradients.
        old_log_probs: (B, T), of the policy that sampled.
        advantages: (B, T), or (B, 1) for one advantage a row.
        clip: ε, 0 … 1.
        clip_high: ε above 1, where it should be wider than below: "clip-higher", so that unlikely
            tokens have room to grow (Yu et al. 2025, DAPO, §3.1). None is the same as `clip`.

    Returns:
        (B, T), not masked; average it with `logprobs.masked_mean` or `grpo.average`.

    Raises:
        ValueError: a clip out of range, or shapes that do not belong together.
    """
    low, high = _clip_range(clip, clip_high)
    shapes = [tuple(x.shape) for x in (log_probs, old_log_probs, advantages)]
    if shapes[0] != shapes[1] or shapes[2] not in (shapes[0], (*shapes[0][:-1], 1)):
        raise ValueError(
            f"log_probs, old_log_probs and advantages have shapes {shapes}: expected (B, T) each, "
            "or (B, 1) for the advantages"
        )
    ratio = (log_probs - old_log_probs.detach()).exp()
    advantages = advantages.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """`clipped_surrogate`, averaged over all actions: a scalar, 0 without actions."""
    return masked_mean(clipped_surrogate(log_probs, old_log_probs, advantages, clip), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2
) -> Tensor:
    """Half the squared error of the values, clipped like the policy: a scalar.

    The larger of the errors of V and of V held within ±clip of its value at sampling time, so that
    one update cannot move it further for gain.

    Args:
        values: (B, T), with gradients.
        old_values, returns: (B, T), as `advantages.gae` took and gave them.
        clip: in units of the reward; None is the plain squared error.
    """
    check_mask(mask, values, old_values, returns)
    old_values, returns = old_values.detach(), returns.detach()
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * masked_mean(error, mask)


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, kind: str = "k1") -> Tensor:
    """Estimates of KL(π ‖ reference) from the log-probs of tokens that π sampled: (…) → (…).

    With Δ = log ref − log π: k1 = −Δ is unbiased but noisy, and negative half of the time; k2 =
    Δ²/2 is never negative but biased; k3 = e^Δ − Δ − 1 is unbiased and never negative (Schulman
    2020, "Approximating KL Divergence"). That is about their *values*. As a loss, on samples of π,
    k1 has a gradient of mean zero and k2 that of the KL; k3 has another one.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KL_KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {KL_KINDS}")
    delta = ref_log_probs.detach() - log_probs
    if kind == "k1":
        return -delta
    return delta.square() / 2 if kind == "k2" else delta.expm1() - delta


@torch.no_grad()
def kl_shaped_rewards(
    scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Rewards of single tokens: −β (log π − log ref) at each, and the score at the last.

    (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, §3.5.) Their sum is the score minus β times
    the k1 estimate of the KL of the whole response.

    Args:
        scores: (B,), of whole responses.
        log_probs: (B, T), of the policy that sampled.
        ref_log_probs: (B, T), of the policy to stay near.
        mask: bool (B, T), at least one action in every row.
        beta: price of a nat of divergence, at least 0.

    Returns:
        (B, T), 0 where the mask is False.

    Raises:
        ValueError: a negative beta, a row without actions, or shapes that do not fit.
    """
    if beta < 0:
        raise ValueError(f"beta={beta}: expected at least 0; a negative one rewards drifting away")
    check_mask(mask, log_probs, ref_log_probs)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)}: expected ({len(mask)},), one a row")
    rewards = (-beta * kl_estimate(log_probs, ref_log_probs)).where(mask, 0.0)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last_action(mask)] += scores
    return rewards


def last_action(mask: Tensor) -> Tensor:
    """Position of the last action of every row: bool (B, T) → int64 (B,).

    Raises:
        ValueError: names the first row without any.
    """
    check_mask(mask)
    empty = ~mask.any(1)
    if empty.any():
        raise ValueError(f"row {int(empty.nonzero()[0])} has no action")
    positions = torch.arange(mask.shape[1], device=mask.device)
    return positions.where(mask, -1).amax(1)


@torch.no_grad()
def clip_fraction(
    log_probs: Tensor,
    old_log_probs: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> float:
    """Share of the actions whose ratio has left the range: how far an update went."""
    low, high = _clip_range(clip, clip_high)
    ratio = (log_probs - old_log_probs).exp()
    return float(masked_mean(((ratio < low) | (ratio > high)).float(), mask))


def _clip_range(clip: float, clip_high: float | None) -> tuple[float, float]:
    clip_high = clip if clip_high is None else clip_high
    if not 0 <= clip <= 1 or clip_high < 0:
        raise ValueError(
            f"clip={clip}, clip_high={clip_high}: expected clip from 0 to 1 and clip_high from 0 up"
        )
    return 1 - clip, 1 + clip_high
