"""Rejection sampling: answer often, keep the best, and learn it like any other text.

    best = rejection_sample(policy, prompts, reward, n_samples=8, ...)
    train(policy, cycle(best.batches(32)), steps=100, lr=1e-3)

No new loss and no gradient through the reward; what is learned was sampled by the policy itself.
(Touvron et al. 2023, Llama 2, §3.2.3; with a rule as the reward, DeepSeek-AI 2025, R1, §2.3.3.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.align.reward import Reward, rewards_of
from minillm.data.packing import Batch
from minillm.infer.rollout import response_batch, rollout
from minillm.model.transformer import Transformer


@dataclass(frozen=True)
class Selection:
    """What was kept: N responses, each with its prompt, as many of one as of the other.

    Attributes:
        prompts, responses: token ids; a response ends with its end token, unless it was cut off.
        rewards: (N,) float32.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    rewards: Tensor

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One epoch to fine-tune on; only the responses are targets. With a generator, shuffled.

        Raises:
            ValueError: a batch size below 1, or nothing was kept.
        """
        if batch_size < 1 or not self.prompts:
            raise ValueError(
                f"batch_size={batch_size} and {len(self.prompts)} responses kept: expected at "
                "least 1 of each"
            )
        n = len(self.prompts)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        for rows in order.split(batch_size):
            yield response_batch(
                [self.prompts[i] for i in rows.tolist()], [self.responses[i] for i in rows.tolist()]
            )


def rejection_sample(
    policy: Transformer,
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    *,
    n_samples: int,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    keep: int = 1,
    at_least: float = -math.inf,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Selection:
    """Sample every prompt `n_samples` times and keep its best responses.

    The best of N are far from typical: the KL from the policy is at most ln N − (N−1)/N nats a
    response, so N = 8 already moves 1.2 nats.

    Args:
        policy: sampled from; not changed.
        prompts: P prompts as token ids.
        reward: (Rollout) → (B,) float, where row i · n_samples + j is sample j of prompt i.
        n_samples, max_new_tokens, stop_tokens, temperature, generator: as for
            `infer.rollout.rollout`.
        keep: how many to keep of each prompt, best first; word for word the same counts once, so
            there may be fewer. Equally good ones in the order they were sampled.
        at_least: drop responses below this reward, and so perhaps all of a prompt's: 1.0 keeps
            what a rule found right.

    Raises:
        ValueError: `keep` out of range, what `rollout` refuses, or rewards of another shape.
    """
    if not 1 <= keep <= n_samples:
        raise ValueError(f"keep={keep} of n_samples={n_samples}: expected 1 to {n_samples}")
    found = rollout(
        policy,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        n_samples=n_samples,
        temperature=temperature,
        generator=generator,
    )
    rewards = rewards_of(found, reward).float().cpu()
    said = found.actions
    rows = []
    for group in range(len(prompts)):
        rows += _best_rows(said, rewards, group * n_samples, n_samples, keep, at_least)
    return Selection(
        [list(prompts[row // n_samples]) for row in rows],
        [said[row] for row in rows],
        rewards[rows],
    )


def _best_rows(
    said: Sequence[Sequence[int]],
    rewards: Tensor,
    first: int,
    n_samples: int,
    keep: int,
    at_least: float,
) -> list[int]:
    """The rows, of `n_samples` from `first` on, that hold the `keep` best different responses."""
    order = rewards[first : first + n_samples].argsort(descending=True, stable=True) + first
    kept: dict[tuple[int, ...], int] = {}
    for row in order.tolist():
        if len(kept) < keep and rewards[row] >= at_least:
            kept.setdefault(tuple(said[row]), row)
    return list(kept.values())
