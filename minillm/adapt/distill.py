"""Teach a small model what a large one thinks, not only what the text says next.

Every way to distil answers two questions: who wrote the text, and what is compared at each token?

    word level       text from a data set          all of the teacher's probabilities
    sequence level   text that the teacher wrote   the token that stands there
    on policy        text that the student wrote   all of the teacher's probabilities

`written` and `own_texts` give the text, `distilling` and `matching` are losses for `train`.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minillm.data.packing import IGNORE, Batch
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer
from minillm.train.loop import LossFn


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float = 2.0,
    weight: float = 0.5,
) -> Tensor:
    """Cross-entropy with the text, mixed with the divergence from the teacher.

    (Hinton et al. 2015, §2.) The second term is T² · KL(teacher ‖ student) with both softened by
    the temperature T; the factor keeps its gradient as large as the first term's.

    Args:
        student_logits, teacher_logits: (B, T, V); no gradient flows to the teacher.
        targets: int64 (B, T), IGNORE where nothing counts.
        temperature: above 0; above 1 it shows how the teacher ranks unlikely tokens.
        weight: of the divergence, 0 … 1.

    Returns:
        Mean over the counted positions, in nats; 0 if there are none.

    Raises:
        ValueError: a temperature or weight out of range, or shapes that differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student {tuple(student_logits.shape)}, teacher {tuple(teacher_logits.shape)}: "
            "expected equal shapes, and so the same vocabulary"
        )
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: expected 0 to 1")
    counted = targets != IGNORE
    n = counted.sum().clamp(min=1)
    hard = F.cross_entropy(
        student_logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    apart = forward_kl(student_logits, teacher_logits, temperature)
    soft = temperature**2 * apart.where(counted, 0.0).sum()
    return ((1 - weight) * hard + weight * soft) / n


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) at every position, (…, V) → (…): the student must cover everything."""
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student ‖ teacher) at every position: the student may pick one of the teacher's ways.

    The usual loss of on-policy distillation, on texts the student wrote (see `own_texts`).
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return (student.exp() * (student - teacher)).sum(-1)


def distilling(teacher: nn.Module, temperature: float = 2.0, weight: float = 0.5) -> LossFn:
    """`distillation_loss` from a teacher that reads each batch, as a loss for `train`."""

    def loss(student: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        n = int((batch.targets != IGNORE).sum())
        logits = student(batch.tokens), _thoughts(teacher, batch)
        return n * distillation_loss(*logits, batch.targets, temperature, weight), n

    return loss


def matching(teacher: nn.Module, divergence: Callable = reverse_kl) -> LossFn:
    """The divergence from the teacher at every counted position, as a loss for `train`.

    Args:
        divergence: (student logits, teacher logits), each (N, V), → (N,).
    """

    def loss(student: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        counted = batch.targets != IGNORE
        logits = student(batch.tokens)[counted], _thoughts(teacher, batch)[counted]
        return divergence(*logits).sum(), int(counted.sum())

    return loss


@torch.no_grad()
def _thoughts(teacher: nn.Module, batch: Batch) -> Tensor:
    return teacher(batch.tokens)


def written(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token: int,
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """What a model writes after each prompt, as a batch to learn from; only that is counted.

    Written by the teacher and learned with the ordinary loss, this is sequence-level distillation
    (Kim & Rush 2016, §3.2). The end token counts where the model chose it, and not where the
    text was cut off.

    Returns:
        Prompts, continuations and padding; the targets of prompts and padding are IGNORE.

    Raises:
        ValueError: as `generate`.
    """
    texts = generate(
        model, prompts, max_new_tokens=max_new_tokens, stop_tokens=(end_token,),
        sampler=sampler, generator=generator,
    )  # fmt: skip
    tokens, targets = [], []
    for prompt, text in zip(prompts, texts, strict=True):
        ending = [end_token] if len(text) < max_new_tokens else []
        row = [*prompt, *text, *ending]
        tokens.append(torch.tensor(row[:-1]))
        targets.append(torch.tensor([IGNORE] * (len(prompt) - 1) + row[len(prompt) :]))
    return Batch(
        pad_sequence(tokens, batch_first=True, padding_value=end_token).to(model.device),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE).to(model.device),
    )


def own_texts(
    model: Transformer, prompts: Callable[[], Sequence[Sequence[int]]], **settings
) -> Iterator[Batch]:
    """Batch after batch of what the model writes at that moment, while it is being trained.

    With `matching(teacher)` this is on-policy distillation: the student is corrected where its
    own mistakes lead it, not where perfect text leads (Agarwal et al. 2024, §3).

    Args:
        prompts: called for the prompts of each batch.
        settings: as for `written`.
    """
    while True:
        yield written(model, prompts(), **settings)


def _log_probs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected a number above 0")
    return tuple((x / temperature).log_softmax(-1) for x in (student, teacher.detach()))


@torch.no_grad()
def agreement(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> float:
    """Share of counted positions at which both find the same token likeliest."""
    same = student_logits.argmax(-1) == teacher_logits.argmax(-1)
    return same[targets != IGNORE].float().mean().item()
