"""LoRA and DoRA: train a small update of a matrix instead of the matrix.

LoRA (Hu et al. 2021) leaves W as it is and adds a product of two thin matrices:

    y = W x + s · B A x,    A (r, C), B (D, r),    s = α / r

B starts at zero, so the model starts as it was. DoRA (Liu et al. 2024) also learns the length of
every row of the sum: W′ = m · (W + s·BA) / ‖W + s·BA‖.

Shapes: B batch, T time, C inputs of a layer, D outputs, r rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.parts import Part, find_parts

# The adapters of Hu et al. (2021, §4.2): queries and values.
QUERY_AND_VALUE = ("attention.q", "attention.v")


@dataclass(frozen=True)
class LoRA:
    """The choices of an adapter.

    ``alpha`` / ``rank`` scales the update, or ``alpha`` / √rank if ``rank_stabilized``
    (Kalajdzievski 2023), with which larger ranks do not learn more slowly. ``dora`` adds DoRA's
    row lengths.

    Raises:
        ValueError: a rank below 1, an alpha that is not positive, or no targets.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = QUERY_AND_VALUE
    rank_stabilized: bool = False
    dora: bool = False

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise ValueError(
                f"rank={self.rank}, alpha={self.alpha}, targets={self.targets}: expected a rank of "
                "at least 1, a positive alpha and at least one target"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class Update(nn.Module):
    """s · B A for ``n_rows`` rows of a matrix with C columns; ``lengths`` are DoRA's m."""

    def __init__(self, weight: Tensor, lora: LoRA, generator: torch.Generator | None):
        super().__init__()
        n_rows, n_columns = weight.shape
        # A as nn.Linear starts; drawn on the CPU, so that a seed means the same everywhere.
        bound = 1 / math.sqrt(n_columns)
        a = (2 * torch.rand(lora.rank, n_columns, generator=generator) - 1) * bound
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(n_rows, lora.rank))
        self.scale = lora.scale
        if lora.dora:
            self.lengths = nn.Parameter(weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, D): what is added to the layer's output."""
        return F.linear(F.linear(x, self.a), self.b) * self.scale

    def delta(self) -> Tensor:
        """The update as a matrix (D, C)."""
        return self.scale * self.b @ self.a

    def stretch(self, weight: Tensor) -> Tensor:
        """DoRA's m / ‖W + ΔW‖ for every row, (D,); the norm counts as a constant (§4.3)."""
        return self.lengths / (weight + self.delta()).detach().norm(dim=1)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with updates of some ranges of its rows."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.updates = nn.ModuleDict()
        self.rows: dict[str, slice] = {}
        self.original: Tensor | None = None  # the weight before merging, while it is merged

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.original is not None:
            return y
        for name, update in self.updates.items():
            part = y[..., self.rows[name]]
            if hasattr(update, "lengths"):
                bias = 0 if self.base.bias is None else self.base.bias[self.rows[name]]
                stretch = update.stretch(self.base.weight[self.rows[name]])
                part.copy_((part - bias + update(x)) * stretch + bias)
            else:
                part.add_(update(x))
        return y

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the updates into the weight; the layer is then as fast as before."""
        if self.original is None:
            self.original = self.base.weight.detach().clone()
            for name, update in self.updates.items():
                rows = self.rows[name]
                merged = self.original[rows] + update.delta()
                if hasattr(update, "lengths"):
                    merged *= update.stretch(self.original[rows])[:, None]
                self.base.weight[rows] = merged

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo `merge`, exactly."""
        if self.original is not None:
            self.base.weight.copy_(self.original)
            self.original = None


def add_lora(
    model: nn.Module, lora: LoRA, generator: torch.Generator | None = None
) -> dict[str, nn.Parameter]:
    """Freeze a model and give it adapters; it computes what it did before, until they learn.

    Args:
        model: changed in place.
        generator: source of the initial A; None starts one at seed 0.

    Returns:
        The parameters that will learn, by name.

    Raises:
        ValueError: a target that names nothing (what there is is listed), or a model that already
            has adapters.
    """
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ValueError("the model already has adapters; merge and remove them first")
    generator = generator or torch.Generator().manual_seed(0)
    parts = find_parts(model, lora.targets)
    model.requires_grad_(False)
    for name, part in parts.items():
        _adapt(model, name, part, lora, generator)
    return trainable(model)


def _adapt(model: nn.Module, name: str, part: Part, lora: LoRA, generator: torch.Generator) -> None:
    layer = model.get_submodule(part.layer)
    if isinstance(layer, nn.Linear):
        layer = AdaptedLinear(layer)
        model.set_submodule(part.layer, layer)
    short = name.rpartition(".")[2]
    layer.updates[short] = Update(layer.weight[part.rows], lora, generator)
    layer.rows[short] = part.rows


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with adapters, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, AdaptedLinear)}


def merge(model: nn.Module) -> None:
    """Fold all adapters into their weights."""
    for layer in adapted_layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Take all adapters out of their weights again, exactly."""
    for layer in adapted_layers(model).values():
        layer.unmerge()


def remove_adapters(model: nn.Module) -> None:
    """Give the plain layers back: with the updates if they are merged, else as they were."""
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.base)
