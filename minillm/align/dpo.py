"""Learn from preferences directly: losses on the log-probs of a better and a worse response.

All are functions of numbers per *response*. DPO, IPO and KTO take the **sum** of the log-probs of
its tokens, the logarithm of its probability; SimPO and ORPO take their **mean**. Getting this wrong
runs without an error and trains another objective.

Shapes: B pairs (or single responses, for KTO), (B,) float each. Reference log-probs carry no
gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """−log σ(β [(log π − log ref)(chosen) − (log π − log ref)(rejected)]), averaged.

    (Rafailov et al. 2023, eq. 7.) The best policy at a KL price of β has as its reward β(log π −
    log ref), up to a number per prompt; put into Bradley–Terry, that number cancels.

    Args:
        chosen, rejected: (B,) summed log-probs under the policy, with gradients.
        ref_chosen, ref_rejected: (B,), the same under the reference.
        beta: above 0; small lets the policy go far.
        label_smoothing: share of labels thought to be wrong, 0 … ½ (conservative DPO).

    Returns:
        A scalar; log 2 where policy and reference agree.

    Raises:
        ValueError: shapes that differ, or settings out of range.
    """
    _check_settings(beta, label_smoothing)
    margin = beta * log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected)
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return -((1 - label_smoothing) * right + label_smoothing * wrong).mean()


def log_ratio_margin(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> Tensor:
    """How much further the policy moved towards the chosen response than the rejected: (B,)."""
    _check_shapes(chosen, rejected, ref_chosen, ref_rejected)
    return (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    tau: float = 0.1,
) -> Tensor:
    """(margin − 1/(2τ))², averaged: a margin to reach, not one to grow without end.

    (Azar et al. 2024, eq. 17.) Where every label agrees, DPO drives the rejected response's
    probability to 0 whatever its β; a square stops at its target.
    """
    _check_settings(tau)
    margin = log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected)
    return (margin - 1 / (2 * tau)).square().mean()


def kto_loss(
    policy: Tensor,
    ref: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    beta: float = 0.1,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Single responses that are good or bad, no pairs (Ethayarajh et al. 2024).

    With r = log π − log ref, a good one costs λ(1 − σ(β(r − z))) and a bad one λ(1 − σ(β(z − r))):
    both flatten far from the reference point z, as people's sense of gains and losses does.

    Args:
        policy, ref: (B,) summed log-probs.
        desirable: bool (B,).
        reference_point: z, from `kto_reference_point`; no gradient flows through it.
        weights: λ of the good and of the bad.

    Returns:
        A scalar.

    Raises:
        ValueError: labels that are not bool, shapes that differ, beta not above 0.
    """
    _check_settings(beta)
    _check_shapes(policy, ref, desirable)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable is {desirable.dtype}: expected bool, True for good responses")
    z = torch.as_tensor(reference_point, device=policy.device).detach()
    gain = beta * (policy - ref.detach() - z)
    good, bad = weights
    lost = torch.where(desirable, good * (-gain).sigmoid(), bad * gain.sigmoid())
    return lost.mean()


@torch.no_grad()
def kto_reference_point(policy: Tensor, ref: Tensor) -> Tensor:
    """KTO's z, an estimate of KL(π ‖ ref): mean of log π − log ref, not below 0.

    Args:
        policy, ref: (B,) summed log-probs of *mismatched* responses: each with the prompt of
            another row, so that they are no examples of good or bad.
    """
    _check_shapes(policy, ref)
    return (policy - ref).mean().clamp(min=0)


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    """−log σ(β(mean chosen − mean rejected) − γ), averaged: no reference (Meng et al. 2024, eq. 6).

    Args:
        chosen, rejected: (B,) log-probs per token, means over each response.
        beta: above 0.
        gamma: by how much the better must win, in units of the reward.
    """
    _check_settings(beta)
    _check_shapes(chosen, rejected)
    return -F.logsigmoid(beta * (chosen - rejected) - gamma).mean()


def orpo_loss(chosen: Tensor, rejected: Tensor, weight: float = 0.1) -> Tensor:
    """Fine-tuning on the chosen response, plus `weight` · −log σ(log odds ratio), averaged.

    (Hong et al. 2024, eq. 6–7.) Odds are p/(1−p), with p the geometric mean of the tokens'
    probabilities. No reference, one stage instead of two.

    Args:
        chosen, rejected: (B,) log-probs per token, means over each response, at most 0.
        weight: λ, at least 0.

    Raises:
        ValueError: a mean log-prob above 0, shapes that differ, a negative weight.
    """
    if weight < 0:
        raise ValueError(f"weight={weight}: expected at least 0")
    _check_shapes(chosen, rejected)
    if (chosen > 0).any() or (rejected > 0).any():
        raise ValueError("a mean log-probability is above 0: expected means over tokens, in nats")
    ratio = log_odds(chosen) - log_odds(rejected)
    return -(chosen + weight * F.logsigmoid(ratio)).mean()


def log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 − p)) from log p; certain to within rounding counts as almost certain."""
    log_p = log_p.clamp(max=-1e-6)  # at p = 1 the odds are infinite
    return log_p - torch.log(-torch.expm1(log_p))


def _check_settings(beta: float, label_smoothing: float = 0.0) -> None:
    if not beta > 0:
        raise ValueError(f"beta={beta}: expected a number above 0")
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: expected 0 to 0.5")


def _check_shapes(first: Tensor, *others: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (first, *others)]
    if first.ndim != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"shapes {shapes}: expected (B,) each; sum or average the tokens' log-probs first"
        )
