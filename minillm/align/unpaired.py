"""Single responses, good or bad, as batches: a thumb up is easier to come by than a comparison.

    thumbs = unpaired_batch(prompts, responses, desirable, reference=base)
    train(policy, repeat(thumbs), steps=50, lr=7e-4, loss_fn=kto_objective(beta=0.1))

Shapes: B rows, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minillm.align.dpo import kto_loss, kto_reference_point
from minillm.align.logprobs import log_probs, masked_sum
from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import response_batch
from minillm.model.transformer import Transformer
from minillm.train.loop import LossFn


@dataclass(frozen=True)
class UnpairedBatch:
    """B responses with a verdict each, and the same responses where they do not belong.

    batch: (B, T); desirable: bool (B,), True for good responses.
    elsewhere: (B, T'), each response after the prompt of the row before.
    reference, elsewhere_reference: (B, T) and (B, T') float32, log-probs of the responses' tokens
    under the policy to stay near.
    """

    batch: Batch
    desirable: Tensor
    elsewhere: Batch
    reference: Tensor
    elsewhere_reference: Tensor

    def to(self, device: torch.device | str) -> UnpairedBatch:
        """The same responses on another device."""
        return UnpairedBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@torch.no_grad()
def unpaired_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    desirable: Sequence[bool],
    reference: Transformer,
) -> UnpairedBatch:
    """Token ids as a batch; the reference reads it once, here, and is not needed again.

    Args:
        prompts, responses, desirable: B of each; neighbours should have different prompts.
        reference: usually the policy before training.

    Raises:
        ValueError: different numbers of them, fewer than two, or an empty one.
    """
    if not len(prompts) == len(responses) == len(desirable) or len(prompts) < 2:
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} responses and {len(desirable)} verdicts: "
            "expected as many of each, and at least two"
        )
    batch = response_batch(prompts, responses)
    elsewhere = response_batch([prompts[-1], *prompts[:-1]], responses)
    known = [log_probs(reference, b.to(reference.device)).cpu() for b in (batch, elsewhere)]
    return UnpairedBatch(batch, torch.tensor(desirable, dtype=torch.bool), elsewhere, *known)


def kto_objective(beta: float = 0.1, weights: tuple[float, float] = (1.0, 1.0)) -> LossFn:
    """`kto_loss` as `train.loop.train` wants it: (policy, unpaired batch) → (sum, number of rows).

    Its reference point is that of the mismatched responses under the policy as it is now
    (Ethayarajh et al. 2024).
    """

    def loss_fn(policy: Transformer, given: UnpairedBatch) -> tuple[Tensor, int]:
        found = _sums(policy, given.batch, given.reference)
        with torch.no_grad():
            point = kto_reference_point(*_sums(policy, given.elsewhere, given.elsewhere_reference))
        loss = kto_loss(*found, given.desirable, point, beta, weights)
        return loss * len(given.desirable), len(given.desirable)

    return loss_fn


def _sums(policy: Transformer, batch: Batch, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of whole responses, (B,), under the policy and under the reference."""
    mask = batch.targets != IGNORE
    return masked_sum(log_probs(policy, batch), mask), masked_sum(reference, mask)
