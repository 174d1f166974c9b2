"""Train a few of a model's own numbers: those that matter most, or others in every step.

How much a number matters is its Fisher information: the mean squared gradient of the loss of one
text. FishMask (Sung et al. 2021) and the task-driven Child-Tuning (Xu et al. 2021) train
the k numbers with the most of it; the task-free Child-Tuning draws new ones in every step.

The chosen numbers are learned as a sparse update of their matrix, not as a matrix with a masked
gradient: then no optimizer can move the others (weight decay would), and k numbers are stored.

Shapes: B batch, T time, C inputs of a layer, D outputs, k chosen numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.lora import add_updates
from minillm.adapt.parts import find_parts


class SparseUpdate(nn.Module):
    """Learned changes at some places of a matrix (D, C), where ``mask`` is True."""

    def __init__(self, mask: Tensor, like: Tensor):
        super().__init__()
        self.shape = mask.shape
        self.register_buffer("places", mask.flatten().nonzero()[:, 0].to(like.device))
        self.values = nn.Parameter(like.new_zeros(len(self.places)))

    def delta(self) -> Tensor:
        """The update as a matrix (D, C)."""
        flat = self.values.new_zeros(self.shape.numel())
        return flat.index_put((self.places,), self.values).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, D): what is added to the layer's output."""
        return F.linear(x, self.delta())


def add_sparse(model: nn.Module, masks: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """Freeze a model and let the chosen numbers learn; it starts as it was.

    Args:
        model: changed in place; `merge` and `remove_adapters` work as for LoRA.
        masks: for each part of the model (see `find_parts`), bool (D, C).

    Returns:
        The parameters that will learn, by name: one vector for each part.

    Raises:
        ValueError: a name that is no part, a mask of another shape, or nothing chosen.
    """
    parts = find_parts(model, masks)
    for name, mask in masks.items():
        if name not in parts:
            raise ValueError(f"{name!r} is not the full name of a part, such as {min(parts)}")
        shape = (parts[name].n_rows, model.get_submodule(parts[name].layer).weight.shape[1])
        if mask.shape != shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}, expected bool {shape}"
            )
    chosen = [name for name, mask in masks.items() if mask.any()]
    if not chosen:
        raise ValueError("the masks choose nothing")
    return add_updates(model, chosen, lambda name, like: SparseUpdate(masks[name], like))


def fisher_information(
    model: nn.Module,
    texts: Iterable,
    loss: Callable[[nn.Module, object], Tensor],
    targets: Iterable[str],
) -> dict[str, Tensor]:
    """The mean of the squared gradients of single texts: part → (D, C).

    The square is taken text by text; the square of a batch's gradient is something else, as the
    gradients of different texts cancel. With the texts' own labels this is the empirical Fisher
    information (Sung et al. 2021).

    Args:
        texts: one at a time.
        loss: (model, text) → scalar.
        targets: the parts to look at (see `find_parts`).

    Raises:
        ValueError: a target that names nothing, or no texts.
    """
    parts = find_parts(model, targets)
    layers = {part.layer: model.get_submodule(part.layer).weight for part in parts.values()}
    sums = {layer: torch.zeros_like(weight) for layer, weight in layers.items()}
    n = 0
    for text in texts:
        gradients = torch.autograd.grad(loss(model, text), list(layers.values()))
        for layer, gradient in zip(layers, gradients, strict=True):
            sums[layer] += gradient.square()
        n += 1
    if n == 0:
        raise ValueError("no texts: the Fisher information is a mean over at least one")
    return {name: sums[part.layer][part.rows] / n for name, part in parts.items()}


def keep_largest(scores: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """The k largest of all scores together, as masks; exactly k, also where some are equal.

    Raises:
        ValueError: k below 1 or above the number of scores.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not 1 <= k <= len(flat):
        raise ValueError(f"k={k}: expected 1 to {len(flat)}, the number of scores")
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.topk(k).indices] = True
    pieces = chosen.split([score.numel() for score in scores.values()])
    return {
        name: piece.view(score.shape)
        for (name, score), piece in zip(scores.items(), pieces, strict=True)
    }


def drop_gradients(
    parameters: Iterable[nn.Parameter], keep: float, generator: torch.Generator | None = None
) -> None:
    """Task-free Child-Tuning: keep a random share of the gradients, enlarged by 1 / share.

    Call it between ``backward`` and ``step``. Enlarged, the gradient stays right on average (Xu et
    al. 2021).

    Args:
        keep: chance of each number to learn in this step, above 0, at most 1.
        generator: on the CPU, so that a seed means the same everywhere.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: expected a share above 0, at most 1")
    for parameter in parameters:
        if parameter.grad is not None:
            kept = torch.rand(parameter.shape, generator=generator) < keep
            parameter.grad *= kept.to(parameter.grad) / keep
