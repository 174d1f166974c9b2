"""Verifiers: models that read a question with an answer, and say how likely the answer is right.

An *outcome* verifier (Cobbe et al. 2021) learns at every token whether the whole response turned
out right; a *process* verifier (Uesato et al. 2022; Lightman et al. 2023) whether this step is
right. They differ in their labels alone, so there is one batch, one loss and one way to read them.

A verifier here is a Transformer like the policy, and may start from its weights: the number that
was the logit of a next token becomes the log-odds that this token would be right. So the judgement
of an action stands where its log-probability stands (`infer.rollout`), and a small model need not
learn to compare what it would have said with what was said.

Shapes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import response_batch
from minillm.model.transformer import Transformer

REDUCTIONS = ("last", "product", "min")


@dataclass(frozen=True)
class Judged(Batch):
    """A batch of whole texts with a judgement of response tokens.

    labels: (B, T) float, 1 where the target is right and 0 where it is wrong.
    judged: (B, T) bool, True where there is a label.
    """

    labels: Tensor | None = None
    judged: Tensor | None = None

    def to(self, device: torch.device | str) -> Judged:
        """The same batch on another device."""
        moved = super().to(device)
        return replace(moved, labels=self.labels.to(device), judged=self.judged.to(device))


def judged_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    labels: Sequence[Sequence[float | None]],
) -> Judged:
    """Put labels where the response tokens are targets.

    Args:
        prompts, responses: token ids, as for `infer.rollout.response_batch`.
        labels: one for each token of each response, 0 … 1, or None where nothing is learned.
            An outcome verifier has the same everywhere; a process verifier 1, 1, 0, None, None if
            the third of five steps is the first wrong one.

    Raises:
        ValueError: a row with another number of labels than tokens, or as `response_batch`.

    Example: ``judged_batch([[5, 6]], [[7, 1]], [[1, 0]])`` has labels [[0, 1, 0, 0]], judged at
    places 1 and 2.
    """
    batch = response_batch(prompts, responses)
    values = torch.zeros(batch.tokens.shape)
    judged = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, (prompt, response, given) in enumerate(zip(prompts, responses, labels, strict=True)):
        if len(given) != len(response):
            raise ValueError(
                f"row {row}: {len(given)} labels for {len(response)} tokens: expected one each"
            )
        for t, label in enumerate(given, start=len(prompt) - 1):
            if label is not None:
                values[row, t], judged[row, t] = float(label), True
    return Judged(batch.tokens, batch.targets, labels=values, judged=judged)


def log_odds(verifier: Transformer, batch: Batch) -> Tensor:
    """The log-odds of each target being right: (B, T), 0 where there is no target."""
    chosen = batch.targets != IGNORE
    targets = batch.targets.where(chosen, 0)
    return verifier(batch.tokens).gather(-1, targets[..., None]).squeeze(-1).where(chosen, 0.0)


def verifier_loss(verifier: Transformer, batch: Judged) -> tuple[Tensor, int]:
    """For `train`: binary cross-entropy summed over the judged places, and how many there are."""
    scores, labels = log_odds(verifier, batch)[batch.judged], batch.labels[batch.judged]
    loss = F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    return loss, int(batch.judged.sum())


@torch.no_grad()
def verdicts(
    verifier: Transformer,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    reduce: str = "product",
) -> Tensor:
    """One number a response, (B,) float in 0 … 1, on the CPU; whole or not yet whole.

    Args:
        reduce: how the tokens' chances are joined. "product": all steps are right, if each is
            right with its chance; "min": the worst one (both: Lightman et al. 2023);
            "last": what is said of the last token, having read all others.

    Raises:
        ValueError: another way to reduce, or as `response_batch`.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: expected one of {', '.join(REDUCTIONS)}")
    batch = response_batch(prompts, responses).to(verifier.device)
    chosen = batch.targets != IGNORE
    chances = log_odds(verifier, batch).sigmoid().where(chosen, 1.0)
    if reduce == "product":
        return chances.prod(1).cpu()
    if reduce == "min":
        return chances.amin(1).cpu()
    last = torch.arange(chosen.shape[1], device=chosen.device).where(chosen, -1).argmax(1)
    return chances.gather(1, last[:, None]).squeeze(1).cpu()
