"""Which rank? AdaLoRA gives each matrix its own; DyLoRA learns all ranks up to one at once.

AdaLoRA (Zhang et al. 2023) writes the update like a singular value decomposition, P Λ Q, and
takes away, step by step, the directions that matter least, wherever they are. DyLoRA (Valipour et
al. 2023) draws a rank for every step and trains only that many directions, so that the first ones
learn most: cut off anywhere, what remains is a LoRA of that rank.

Shapes: C inputs of a layer, D outputs, r rank.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from minillm.adapt.lora import LoRA, LowRank, Update, add_updates, named_updates
from minillm.adapt.selection import keep_largest


class SVDUpdate(LowRank):
    """s · P diag(λ) Q: with λ = 0 a direction is off, but its vectors are still there (§3.1)."""

    def __init__(self, like: Tensor, lora: LoRA, generator: torch.Generator):
        super().__init__()
        n_rows, n_columns = like.shape
        p, q = (torch.randn(lora.rank, n, generator=generator) for n in (n_rows, n_columns))
        self.p = nn.Parameter(0.02 * p.T.to(like))
        self.values = nn.Parameter(like.new_zeros(lora.rank))
        self.q = nn.Parameter(0.02 * q.to(like))
        self.scale = lora.scale

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.q, self.p * self.values


def add_adalora(
    model: nn.Module, lora: LoRA, generator: torch.Generator | None = None
) -> dict[str, nn.Parameter]:
    """As `add_lora`, with updates whose rank can shrink; ``lora.rank`` is what they start with.

    A training step is then: backward, step, `Importance.observe`, and now and then
    `keep_directions(model, importance.scores(), rank_budget(step, …))`. Add `orthogonality` to
    the loss.

    Raises:
        ValueError: as `add_lora`; or ``dora``, which has no meaning here.
    """
    _refuse_dora(lora)
    generator = generator or torch.Generator().manual_seed(0)
    return add_updates(model, lora.targets, lambda _, like: SVDUpdate(like, lora, generator))


def orthogonality(model: nn.Module) -> Tensor:
    """How far P and Q are from orthogonal: Σ ‖PᵀP − I‖² + ‖QQᵀ − I‖² (Zhang et al. 2023, §3.1)."""
    total = 0
    for update in svd_updates(model).values():
        for gram in (update.p.T @ update.p, update.q @ update.q.T):
            total = total + (gram - torch.eye(len(gram), device=gram.device)).square().sum()
    return total


def rank_budget(step: int, start: int, target: int, begin: int, end: int) -> int:
    """How many directions the whole model may keep: falls from start to target as a cubic.

    (Zhang et al. 2023, §3.3.) It is ``start`` up to step ``begin``, ``target`` from step ``end``.

    Raises:
        ValueError: an end that is not after the beginning.
    """
    if end <= begin:
        raise ValueError(f"begin={begin}, end={end}: expected an end after the beginning")
    left = 1 - min(max((step - begin) / (end - begin), 0), 1)
    return int((start - target) * left**3 + target)


class Importance:
    """How much each direction matters, averaged over the steps (Zhang et al. 2023, §3.2).

    A number w counts with |w · gradient|: about what the loss would change without it. One batch
    is noisy, so the score is the running mean of that, times the running mean of how far it
    strays. A direction's score is that of its λ, plus the mean of its column of P and row of Q.
    """

    def __init__(self, model: nn.Module, beta1: float = 0.85, beta2: float = 0.85):
        self.updates, self.beta1, self.beta2 = svd_updates(model), beta1, beta2
        numbers = [p for update in self.updates.values() for p in update.parameters()]
        self.means = {p: torch.zeros_like(p) for p in numbers}
        self.strays = {p: torch.zeros_like(p) for p in numbers}

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the gradients of a step; call it before they are cleared."""
        for p, mean in self.means.items():
            now = (p * p.grad).abs()
            mean.lerp_(now, 1 - self.beta1)
            self.strays[p].lerp_((now - mean).abs(), 1 - self.beta2)

    def scores(self) -> dict[str, Tensor]:
        """A score for every direction of every update: part → (r,)."""
        scores = {}
        for name, update in self.updates.items():
            p, values, q = (
                self.means[x] * self.strays[x] for x in (update.p, update.values, update.q)
            )
            scores[name] = values + p.mean(0) + q.mean(1)
        return scores


@torch.no_grad()
def keep_directions(model: nn.Module, scores: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Set λ to zero for all but the n best directions of the model.

    The others still get gradients, and may come back the next time.

    Returns:
        Which ones stay, bool (r,) for each part.

    Raises:
        ValueError: n below 1 or above the number of directions.
    """
    kept = keep_largest(scores, n)
    for name, update in svd_updates(model).items():
        update.values *= kept[name]
    return kept


def svd_updates(model: nn.Module) -> dict[str, SVDUpdate]:
    """AdaLoRA's updates by the names of their parts.

    Raises:
        ValueError: the model has none.
    """
    found = {n: u for n, u in named_updates(model).items() if isinstance(u, SVDUpdate)}
    if not found:
        raise ValueError("the model has no AdaLoRA updates; add_adalora gives it some")
    return found


class NestedUpdate(Update):
    """A LoRA update that uses only its first ``rank`` directions, scaled as one of that rank.

    A step trains all directions up to the drawn rank (Valipour et al. 2023; their FROZEN
    variant, which trains the last of them alone, is left out).
    """

    def __init__(self, like: Tensor, lora: LoRA, generator: torch.Generator):
        super().__init__(like, lora, generator)
        self.lora = lora
        self.use(lora.rank)

    def use(self, rank: int) -> None:
        """Compute with this rank from now on."""
        self.rank, self.scale = rank, replace(self.lora, rank=rank).scale

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a[: self.rank], self.b[:, : self.rank]


def add_dylora(
    model: nn.Module, lora: LoRA, generator: torch.Generator | None = None
) -> dict[str, nn.Parameter]:
    """As `add_lora`, for all ranks up to ``lora.rank`` at once.

    Call `draw_rank` before every step, and at the end `set_rank` with the rank to keep.

    Raises:
        ValueError: as `add_lora`; or ``dora``, which has no meaning here.
    """
    _refuse_dora(lora)
    generator = generator or torch.Generator().manual_seed(0)
    return add_updates(model, lora.targets, lambda _, like: NestedUpdate(like, lora, generator))


def draw_rank(model: nn.Module, generator: torch.Generator | None = None) -> int:
    """Draw the rank of the next step for the whole model, each from 1 to the largest as likely."""
    largest = min(len(update.a) for update in _nested_updates(model))
    rank = int(torch.randint(1, largest + 1, (1,), generator=generator))
    set_rank(model, rank)
    return rank


def set_rank(model: nn.Module, rank: int) -> None:
    """Use only the first ``rank`` directions of every DyLoRA update, until the next call.

    Raises:
        ValueError: a rank that was not trained, or a model without DyLoRA updates.
    """
    updates = _nested_updates(model)
    largest = min(len(update.a) for update in updates)
    if not 1 <= rank <= largest:
        raise ValueError(f"rank={rank}: expected 1 to {largest}, the ranks that were trained")
    for update in updates:
        update.use(rank)


def _nested_updates(model: nn.Module) -> list[NestedUpdate]:
    found = [module for module in model.modules() if isinstance(module, NestedUpdate)]
    if not found:
        raise ValueError("the model has no DyLoRA updates; add_dylora gives it some")
    return found


def _refuse_dora(lora: LoRA) -> None:
    if lora.dora:
        raise ValueError("dora=True: row lengths are learned with plain LoRA only")
