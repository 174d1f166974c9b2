"""What a policy learns from when it learns from itself: samples, judged, ready for one update.

Learning by reward runs in the one training loop, because its batches can be anything that is
iterated over. Here they are made while it runs, each from the policy as it is by then:

    def experiences():
        while True:
            yield group_experience(policy, prompts, reward, n_samples=8, ...)

    train(policy, experiences(), steps=60, lr=3e-4, loss_fn=grpo_objective())

Yielding the same experience twice is a second epoch on it. `summary` is what to watch.

Shapes: P prompts, B rows (P times samples), T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from minillm.align.advantages import gae, group_advantages, informative, whiten
from minillm.align.grpo import grpo_loss
from minillm.align.logprobs import log_probs, masked_mean, masked_sum
from minillm.align.ppo import kl_shaped_rewards, policy_loss, value_loss
from minillm.align.reward import Reward, ScalarModel, rewards_of
from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import Rollout, rollout
from minillm.model.transformer import Transformer
from minillm.train.loop import LossFn


@dataclass(frozen=True)
class Experience:
    """Responses of a policy and how good they were.

    Attributes:
        batch: whole texts (B, T); the targets that are not IGNORE are the actions.
        log_probs: (B, T), of the actions under the policy that sampled them.
        advantages: (B,) one a response, or (B, T) one an action.
        rewards: (B,), as given.
        n_samples: rows in a row that answer the same prompt.
        temperature: at which they were sampled, and have to be judged.
        ref_log_probs: (B, T), under the policy to stay near, or None.
        values, returns: (B, T), what was expected and what came, or None without value function.
    """

    batch: Batch
    log_probs: Tensor
    advantages: Tensor
    rewards: Tensor
    n_samples: int = 1
    temperature: float = 1.0
    ref_log_probs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: True where there is an action."""
        return self.batch.targets != IGNORE

    def to(self, device: torch.device | str) -> Experience:
        """The same experience on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor | Batch) else v for k, v in parts.items()}
        return Experience(**moved)


def summary(experience: Experience) -> dict[str, float]:
    """The numbers to watch, of the policy that sampled.

    reward: mean. length: mean number of actions, the end token included. entropy: mean of −log π
    of what was sampled, nats per token. informative: share of prompts whose answers are not all
    equally good; left out with one answer each. kl: nats per response, the k1 estimate; left out
    without a reference.
    """
    mask = experience.mask
    numbers = {
        "reward": experience.rewards.mean(),
        "length": mask.sum(1).float().mean(),
        "entropy": -masked_mean(experience.log_probs, mask),
    }
    if experience.n_samples > 1:
        groups = experience.rewards.view(-1, experience.n_samples)
        numbers["informative"] = informative(groups).float().mean()
    if experience.ref_log_probs is not None:
        moved = experience.log_probs - experience.ref_log_probs
        numbers["kl"] = masked_sum(moved, mask).mean()
    return {name: float(number) for name, number in numbers.items()}


def group_experience(
    policy: Transformer,
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    *,
    n_samples: int,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    method: str = "grpo",
    temperature: float = 1.0,
    reference: Transformer | None = None,
    generator: torch.Generator | None = None,
) -> Experience:
    """Several answers to each prompt; the advantage is how much better one is than the others.

    Args:
        policy: sampled from as it is now.
        prompts: P prompts as token ids.
        reward: called with the `Rollout`, whose row i · n_samples + j is answer j to prompt i.
        n_samples: answers to each prompt, at least 2.
        max_new_tokens, stop_tokens, temperature, generator: as for `infer.rollout.rollout`.
        method: one of `align.advantages.METHODS`.
        reference: the policy to stay near; needed for a loss with β above 0.

    Raises:
        ValueError: what `rollout` and `group_advantages` refuse, or rewards of another shape.
    """
    found = rollout(
        policy,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        n_samples=n_samples,
        temperature=temperature,
        generator=generator,
    )
    rewards = rewards_of(found, reward)
    advantages = group_advantages(rewards.view(len(prompts), n_samples), method).flatten()
    known = _reference_log_probs(reference, found, temperature)
    return Experience(
        found.batch, found.log_probs, advantages, rewards, n_samples, temperature, known
    )


def grpo_objective(**settings) -> LossFn:
    """`grpo_loss` as `train.loop.train` wants it: (policy, experience) → (sum, number of rows).

    Args:
        settings: passed on to `grpo_loss`, such as ``by="token"`` or ``beta=0.04``.
    """

    def loss_fn(policy: Transformer, experience: Experience) -> tuple[Tensor, int]:
        n_rows = len(experience.rewards)
        loss = grpo_loss(
            log_probs(policy, experience.batch, experience.temperature),
            experience.log_probs,
            experience.advantages,
            experience.mask,
            ref_log_probs=experience.ref_log_probs,
            **settings,
        )
        return loss * n_rows, n_rows

    return loss_fn


class ActorCritic(nn.Module):
    """A policy and the value function that judges it, trained together.

    Args:
        policy: what is to become good.
        value: what is to be expected from each position on. With a backbone of its own; sharing
            the policy's saves memory, and lets the errors of the values disturb the policy.
    """

    def __init__(self, policy: Transformer, value: ScalarModel):
        super().__init__()
        self.policy = policy
        self.value = value


def ppo_experience(
    actor_critic: ActorCritic,
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    *,
    reference: Transformer,
    beta: float,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    gamma: float = 1.0,
    lam: float = 0.95,
    n_samples: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Experience:
    """Answers with an advantage for every token (Ziegler et al. 2019; Ouyang et al. 2022, §3.5).

    Every token pays β times how much likelier the policy finds it than the reference, the last one
    earns the reward; `gae` compares with what the value function expected. Advantages are whitened
    over the batch.

    Args:
        actor_critic: sampled from and judged as it is now.
        prompts, reward: as for `group_experience`.
        reference: the policy to stay near, usually that before training.
        beta: price of a nat of divergence; 0 lets the policy go anywhere.
        gamma, lam: as for `gae`.

    Raises:
        ValueError: what `rollout`, `gae` and `kl_shaped_rewards` refuse, or rewards of another
            shape.
    """
    found = rollout(
        actor_critic.policy,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        n_samples=n_samples,
        temperature=temperature,
        generator=generator,
    )
    mask = found.mask
    rewards = rewards_of(found, reward)
    known = _reference_log_probs(reference, found, temperature)
    with torch.no_grad():
        values = actor_critic.value(found.batch.tokens).where(mask, 0.0)
    shaped = kl_shaped_rewards(rewards, found.log_probs, known, mask, beta)
    advantages, returns = gae(shaped, values, mask, gamma=gamma, lam=lam)
    return Experience(
        found.batch,
        found.log_probs,
        whiten(advantages, mask),
        rewards,
        n_samples,
        temperature,
        known,
        values,
        returns,
    )


def ppo_objective(
    *, clip: float = 0.2, value_clip: float | None = 0.2, value_weight: float = 0.5
) -> LossFn:
    """Clipped policy loss + `value_weight` · clipped value loss, as `train.loop.train` wants it.

    (Schulman et al. 2017, eq. 9, without the entropy bonus.) The model is an `ActorCritic`; the
    loss function returns (sum, number of actions).
    """

    def loss_fn(model: ActorCritic, experience: Experience) -> tuple[Tensor, int]:
        mask, n_actions = experience.mask, int(experience.mask.sum())
        new = log_probs(model.policy, experience.batch, experience.temperature)
        acting = policy_loss(new, experience.log_probs, experience.advantages, mask, clip)
        values = model.value(experience.batch.tokens)
        judging = value_loss(values, experience.values, experience.returns, mask, value_clip)
        return (acting + value_weight * judging) * n_actions, n_actions

    return loss_fn


@torch.no_grad()
def _reference_log_probs(
    reference: Transformer | None, found: Rollout, temperature: float
) -> Tensor | None:
    return None if reference is None else log_probs(reference, found.batch, temperature)
