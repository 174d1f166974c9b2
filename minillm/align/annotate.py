"""Preference data: pairs of a policy's own samples, and which of the two an annotator prefers.

comparisons = annotate(policy, prompts, truth, max_new_tokens=24, ...)
train(reward_model, cycle(comparisons.batches(20)), ..., loss_fn=reward_model_loss)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from minillm.align.preferences import PreferenceBatch, preference_batch
from minillm.align.reward import Reward, rewards_of, simulated_preferences
from minillm.infer.rollout import rollout
from minillm.model.transformer import Transformer


@dataclass(frozen=True)
class Comparisons:
    """N prompts as token ids, with a preferred and another response to each.

    Responses end with their end token, unless they were cut off.
    """

    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Sequence[int]) -> Comparisons:
        """Some of them, in the order of `rows`."""
        parts = (self.prompts, self.chosen, self.rejected)
        return Comparisons(*([part[row] for row in rows] for part in parts))

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        reference: Transformer | None = None,
    ) -> Iterator[PreferenceBatch]:
        """One epoch; with a generator, shuffled.

        Args:
            reference: reads each pair once and notes its log-probs, as `preference_batch` does.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        for rows in order.split(batch_size):
            part = self.select(rows.tolist())
            yield preference_batch(part.prompts, part.chosen, part.rejected, reference)


def annotate(
    policy: Transformer,
    prompts: Sequence[Sequence[int]],
    truth: Reward,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    noise: float = 0.3,
    flipped: float = 0.05,
    generator: torch.Generator,
) -> Comparisons:
    """Sample two responses to every prompt and let simulated annotators compare them.

    Args:
        truth: (Rollout) → (B,) float, what the annotators go by; row 2i + j is response j to
            prompt i.
        noise, flipped: how unsure and how careless they are, the `temperature` and `flipped` of
            `reward.simulated_preferences`.

    Raises:
        ValueError: what `rollout`, `rewards_of` and `simulated_preferences` refuse.
    """
    found = rollout(
        policy,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        n_samples=2,
        generator=generator,
    )
    first, second = rewards_of(found, truth).cpu().view(-1, 2).unbind(1)
    wins = simulated_preferences(first, second, generator, temperature=noise, flipped=flipped)
    said = found.actions
    pairs = list(zip(said[::2], said[1::2], strict=True))
    return Comparisons(
        [list(prompt) for prompt in prompts],
        [pair[0] if win else pair[1] for pair, win in zip(pairs, wins.tolist(), strict=True)],
        [pair[1] if win else pair[0] for pair, win in zip(pairs, wins.tolist(), strict=True)],
    )
