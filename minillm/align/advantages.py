"""Advantages: how much better an action was than what was expected there.

With a value function they are estimated token by token (GAE); with several answers to the same
prompt, the other answers are what was expected, and no value function is needed.

Shapes: B rows, T time, P prompts, G answers to each (a group). Masks bool, True = an action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.align.logprobs import check_mask, masked_mean

METHODS = ("grpo", "dr_grpo", "rloo")


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    δ_t = r_t + γ V_{t+1} − V_t, and A_t = δ_t + γλ A_{t+1}: λ = 0 trusts the values (little noise,
    biased as they are), λ = 1 only what really came (no bias, all the noise). "Next" means the
    next action: positions in between that are not the policy's are stepped over.

    Args:
        rewards: (B, T), for the action at each position.
        values: (B, T), what is expected from there on, before the action.
        mask: bool (B, T).
        gamma: discount per action, 0 … 1.
        lam: 0 … 1.
        last_values: (B,), what is expected after the last action; None is 0, the response is over.
            For one that was cut off, the value of the text so far.

    Returns:
        advantages and returns (= advantages + values), both (B, T), 0 where the mask is False;
        without gradients.

    Raises:
        ValueError: gamma or lam outside 0 … 1, a mask that is not bool, or other shapes.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma={gamma}, lam={lam}: expected numbers from 0 to 1")
    check_mask(mask, rewards, values)
    advantages = torch.zeros_like(values)
    next_advantage = values.new_zeros(len(values))
    next_value = next_advantage if last_values is None else last_values
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        keep = mask[:, t]
        advantages[:, t] = advantage.where(keep, 0.0)
        next_advantage = advantage.where(keep, next_advantage)
        next_value = values[:, t].where(keep, next_value)
    return advantages, (advantages + values).where(mask, 0.0)


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale the actions' numbers to mean 0 and variance 1; others become 0.

    The variance is that of a population (divided by n). Numbers that are all the same become 0.
    """
    centred = x - masked_mean(x, mask)
    spread = masked_mean(centred.square(), mask).sqrt()
    return (centred / (spread + 1e-8)).where(mask, 0.0)


@torch.no_grad()
def group_advantages(rewards: Tensor, method: str = "grpo") -> Tensor:
    """How much better each answer is than the other answers to the same prompt.

    "grpo": (r − mean) / (std + 1e-4), the std over G − 1 (Shao et al. 2024, §4.1).
    "dr_grpo": r − mean; without the division, groups that are nearly all right or all wrong are
    not blown up (Liu et al. 2025, *Understanding R1-Zero-Like Training*).
    "rloo": r − mean of the *others*, G/(G−1) times as much (Ahmadian et al. 2024).

    Args:
        rewards: (P, G) float, G at least 2.

    Returns:
        (P, G): the same for every token of an answer. 0 throughout where all answers are equally
        good: such a group teaches nothing.

    Raises:
        ValueError: an unknown method, or groups of fewer than two.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {METHODS}")
    if rewards.ndim != 2 or rewards.shape[1] < 2 or not rewards.is_floating_point():
        raise ValueError(
            f"rewards are {rewards.dtype} of shape {tuple(rewards.shape)}: expected floats (P, G), "
            "at least two answers to each prompt"
        )
    G = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)
    # The mean of equal numbers may differ from them by rounding, which the division would blow up.
    centred = centred.where(informative(rewards)[:, None], 0.0)
    if method == "rloo":
        return centred * (G / (G - 1))
    if method == "dr_grpo":
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


def informative(rewards: Tensor) -> Tensor:
    """Groups whose answers are not all equally good, (P, G) → (P,) bool: only these teach."""
    return rewards.amax(1) != rewards.amin(1)
