"""LoRA and DoRA: train a small update of a matrix instead of the matrix.

LoRA (Hu et al. 2021) leaves W as it is and adds a product of two thin matrices:

    y = W x + s · B A x,    A (r, C), B (D, r),    s = α / r

B starts at zero, so the model starts as it was. DoRA (Liu et al. 2024) also learns the length of
every row of the sum: W′ = m · (W + s·BA) / ‖W + s·BA‖.

Shapes: B batch, T time, C inputs of a layer, D outputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.parts import find_parts
from minillm.adapt.wrap import WrappedLinear, refuse_wrapped, trainable, wrap

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


class AdaptedLinear(WrappedLinear):
    """A frozen linear layer, plain or quantised, with updates of some ranges of its rows."""

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.updates = nn.ModuleDict()
        self.rows: dict[str, slice] = {}

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

    def merged(self) -> tuple[Tensor, Tensor | None]:
        weight = self.base.weight.clone()
        for name, update in self.updates.items():
            rows = self.rows[name]
            weight[rows] += update.delta()
            if hasattr(update, "lengths"):
                weight[rows] *= update.stretch(self.base.weight[rows])[:, None]
        return weight, self.base.bias


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
    generator = generator or torch.Generator().manual_seed(0)
    return add_updates(model, lora.targets, lambda _, rows: Update(rows, lora, generator))


def add_updates(
    model: nn.Module, targets: Iterable[str], make: Callable[[str, Tensor], nn.Module]
) -> dict[str, nn.Parameter]:
    """Freeze a model and add to some of its matrices; arguments and errors as `add_lora`.

    Args:
        make: from the name of a part and its rows of the weight (D, C) to what is added: a module
            with a ``forward`` (…, C) → (…, D) and its matrix as ``delta()``.
    """
    refuse_wrapped(model)
    parts = find_parts(model, targets)
    model.requires_grad_(False)
    for name, part in parts.items():
        layer, short = wrap(model, part, AdaptedLinear), name.rpartition(".")[2]
        layer.updates[short] = make(name, layer.weight[part.rows])
        layer.rows[short] = part.rows
    return trainable(model)


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with updates, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, AdaptedLinear)}


def named_updates(model: nn.Module) -> dict[str, nn.Module]:
    """The updates by the names of their parts: blocks.0.attention.q, blocks.0.mlp.down."""
    updates = {}
    for layer_name, layer in adapted_layers(model).items():
        parent = layer_name.rpartition(".")[0]
        for short, update in layer.updates.items():
            updates[f"{parent}.{short}"] = update
    return updates
