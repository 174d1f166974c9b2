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
    (Kalajdzievski 2023), with which the first gradient does not shrink with the rank. ``dora``
    adds DoRA's row lengths.

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


class LowRank(nn.Module):
    """s · B A, for whatever B and A are made of."""

    scale: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, C) and B (D, r)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, D): what is added to the layer's output."""
        a, b = self.factors()
        return F.linear(F.linear(x, a), b) * self.scale

    def delta(self) -> Tensor:
        """The update as a matrix (D, C)."""
        a, b = self.factors()
        return self.scale * b @ a


class Update(LowRank):
    """LoRA's learned A and B for some rows of a matrix; ``lengths`` are DoRA's m.

    Args:
        like: (D, C), of the type and on the device of the update.
    """

    def __init__(self, like: Tensor, lora: LoRA, generator: torch.Generator | None):
        super().__init__()
        n_rows, n_columns = like.shape
        # A as nn.Linear starts; drawn on the CPU, so that a seed means the same everywhere.
        bound = 1 / math.sqrt(n_columns)
        a = (2 * torch.rand(lora.rank, n_columns, generator=generator) - 1) * bound
        self.a = nn.Parameter(a.to(like))
        self.b = nn.Parameter(like.new_zeros(n_rows, lora.rank))
        self.scale = lora.scale

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b

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
        low, factors = [], []  # those of low rank are added together
        for name, update in self.updates.items():
            rows = self.rows[name]
            if hasattr(update, "lengths"):
                part, bias = y[..., rows], 0 if self.base.bias is None else self.base.bias[rows]
                stretch = update.stretch(self.base.weight[rows])
                part.copy_((part - bias + update(x)) * stretch + bias)
            elif isinstance(update, LowRank):
                low.append((rows, update.scale))
                factors += [factor.to(y.dtype) for factor in update.factors()]
            else:
                y[..., rows].add_(update(x))
        return AddLowRank.apply(y, x.to(y.dtype), low, *factors) if low else y

    def merged(self) -> tuple[Tensor, Tensor | None]:
        weight = self.base.weight.clone()
        for name, update in self.updates.items():
            rows = self.rows[name]
            weight[rows] += update.delta()
            if hasattr(update, "lengths"):
                weight[rows] *= update.stretch(self.base.weight[rows])[:, None]
        return weight, self.base.bias


class AddLowRank(torch.autograd.Function):
    """y += s · B A x on ranges of the rows of a layer, in place.

    Keeps x once for all of them, and makes nothing else that is as wide as y.
    """

    @staticmethod
    def forward(
        ctx, y: Tensor, x: Tensor, low: list[tuple[slice, float]], *factors: Tensor
    ) -> Tensor:
        """y (…, D), x (…, C), then A (r, C) and B (d, r) for each (rows, s) of ``low``."""
        out, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        thin = [inputs @ a.T for a in factors[::2]]  # (n, r)
        for (rows, scale), b, t in zip(low, factors[1::2], thin, strict=True):
            out[:, rows].addmm_(t, b.T, alpha=scale)
        ctx.low = low
        ctx.save_for_backward(x, *factors, *thin)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.low)
        x, *saved = ctx.saved_tensors
        factors, thin = saved[: 2 * n], saved[2 * n :]
        inputs, of_y = (t.reshape(-1, t.shape[-1]) for t in (x, gradient))
        of_x = torch.zeros_like(inputs) if ctx.needs_input_grad[1] else None
        of_factors = []
        for (rows, scale), a, b, t in zip(ctx.low, factors[::2], factors[1::2], thin, strict=True):
            of_thin = (of_y[:, rows] @ b).mul_(scale)
            of_factors += [of_thin.T @ inputs, (of_y[:, rows].T @ t).mul_(scale)]
            if of_x is not None:
                of_x.addmm_(of_thin, a)
        return gradient, None if of_x is None else of_x.view_as(x), None, *of_factors


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
    add_updates(model, lora.targets, lambda _, like: Update(like, lora, generator))
    for layer in adapted_layers(model).values() if lora.dora else ():
        weight = layer.weight.detach()
        for name, update in layer.updates.items():
            update.lengths = nn.Parameter(weight[layer.rows[name]].norm(dim=1))
    return trainable(model)


def add_updates(
    model: nn.Module, targets: Iterable[str], make: Callable[[str, Tensor], nn.Module]
) -> dict[str, nn.Parameter]:
    """Freeze a model and add to some of its matrices; arguments and errors as `add_lora`.

    Args:
        make: from the name of a part and an empty matrix (D, C) like its rows of the weight to
            what is added: a module with a ``forward`` (…, C) → (…, D) and its matrix as
            ``delta()``.
    """
    refuse_wrapped(model)
    parts = find_parts(model, targets)
    model.requires_grad_(False)
    for name, part in parts.items():
        layer, short = wrap(model, part, AdaptedLinear), name.rpartition(".")[2]
        layer.updates[short] = make(name, layer.like(part.n_rows))
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
