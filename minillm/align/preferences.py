"""Pairs of responses as batches, so that preference losses run in the one training loop.

    loss = preference_loss(dpo_loss, beta=0.1)
    train(policy, batches_of_pairs, steps=200, lr=1e-4, loss_fn=loss)

Shapes: B pairs, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.align.dpo import dpo_loss
from minillm.align.logprobs import log_probs, masked_sum
from minillm.align.reward import ScalarModel, bradley_terry_loss
from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import response_batch
from minillm.model.transformer import Transformer
from minillm.train.loop import LossFn


@dataclass(frozen=True)
class PreferenceBatch:
    """B pairs of responses, each pair to one prompt.

    batch: (2B, T): the B chosen responses, then the B rejected in the same order.
    reference: (2B, T) float32, log-probs of their tokens under the policy to stay near, or None.
    """

    batch: Batch
    reference: Tensor | None = None

    def to(self, device: torch.device | str) -> PreferenceBatch:
        """The same pairs on another device."""
        reference = None if self.reference is None else self.reference.to(device)
        return PreferenceBatch(self.batch.to(device), reference)


def preference_batch(
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    rejected: Sequence[Sequence[int]],
    reference: Transformer | None = None,
) -> PreferenceBatch:
    """Token ids as a batch; the reference reads it once, here, and is not needed again.

    Args:
        prompts, chosen, rejected: B of each; responses end with their end token.
        reference: usually the policy before training; None for losses that need none.

    Raises:
        ValueError: different numbers of them, or an empty one.
    """
    if not len(prompts) == len(chosen) == len(rejected):
        raise ValueError(
            f"{len(prompts)} prompts, {len(chosen)} chosen and {len(rejected)} rejected responses: "
            "expected as many of each"
        )
    batch = response_batch([*prompts, *prompts], [*chosen, *rejected])
    if reference is None:
        return PreferenceBatch(batch)
    with torch.no_grad():
        known = log_probs(reference, batch.to(reference.device)).cpu()
    return PreferenceBatch(batch, known)


def preference_loss(
    loss: Callable[..., Tensor] = dpo_loss,
    reduce: Callable[[Tensor, Tensor], Tensor] = masked_sum,
    **settings: float,
) -> LossFn:
    """A loss on pairs, as `train.loop.train` wants it: (model, pairs) → (sum, number of pairs).

    Args:
        loss: one of `align.dpo`; with a reference in the batch it gets chosen, rejected,
            reference chosen, reference rejected, without one only the first two.
        reduce: tokens to responses: `masked_sum` for DPO and IPO, `masked_row_mean` for SimPO
            and ORPO.
        settings: passed on, such as ``beta``.
    """

    def loss_fn(model: Transformer, pairs: PreferenceBatch) -> tuple[Tensor, int]:
        mask = pairs.batch.targets != IGNORE
        sides = reduce(log_probs(model, pairs.batch), mask).chunk(2)
        if pairs.reference is not None:
            sides += reduce(pairs.reference, mask).chunk(2)
        n_pairs = len(mask) // 2
        return loss(*sides, **settings) * n_pairs, n_pairs

    return loss_fn


def reward_model_loss(model: ScalarModel, pairs: PreferenceBatch) -> tuple[Tensor, int]:
    """Bradley–Terry on the sum over each response's tokens, for `train`: (sum, number of pairs)."""
    chosen, rejected = model.over_response(pairs.batch).chunk(2)
    return bradley_terry_loss(chosen, rejected) * len(chosen), len(chosen)
