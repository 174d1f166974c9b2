"""Teach a small model what a large one thinks, not only what the text says next.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.data.packing import IGNORE


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

    The loss of on-policy distillation, on texts the student wrote itself (Agarwal et al. 2024).
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return (student.exp() * (student - teacher)).sum(-1)


def _log_probs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected a number above 0")
    return tuple((x / temperature).log_softmax(-1) for x in (student, teacher.detach()))


@torch.no_grad()
def agreement(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> float:
    """Share of counted positions at which both find the same token likeliest."""
    same = student_logits.argmax(-1) == teacher_logits.argmax(-1)
    return same[targets != IGNORE].float().mean().item()
