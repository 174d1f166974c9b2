"""How a tensor of ours lies in published files: one table per family, read in both directions.

A `Row` names one tensor of ours, the published tensors it is made of, and the `Layout` between
them. `pack` turns the published tensors into ours, `unpack` ours into them; unpacking an empty
tensor on the meta device therefore also tells which published shapes to expect.

Shapes: C channels in, H query heads, K key/value heads, D head size, E experts, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Two functions, each the inverse of the other: published tensors → ours, and back."""

    pack: Callable[[list[Tensor]], Tensor]
    unpack: Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Row:
    """One tensor of ours, the published tensors that hold it, and how."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout


def elementwise(there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Layout:
    """A layout of one tensor: ``there`` makes it ours, ``back`` theirs."""
    return Layout(lambda tensors: there(tensors[0]), lambda tensor: [back(tensor)])


SAME = elementwise(lambda w: w, lambda w: w)
# Inputs first, as GPT-2 stores its matrices; a bias stays as it is.
TRANSPOSED = elementwise(lambda w: w.t().contiguous(), lambda w: w.t())
# Gemma multiplies by 1 + weight; we multiply by the weight.
PLUS_ONE = elementwise(lambda w: w + 1, lambda w: w - 1)


def rows(*sizes: int) -> Layout:
    """Several published tensors, one below the other in ours: q, k, v or gate, up."""
    return Layout(torch.cat, lambda tensor: list(tensor.split(sizes)))


def without_rows(n: int) -> Layout:
    """Theirs has ``n`` more rows in front, which nothing reads (OPT's positions start at 2)."""

    def unpack(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(n, *tensor.shape[1:]), tensor])

    return elementwise(lambda w: w[n:], unpack)


def fused_heads(n_heads: int, n_kv_heads: int, head_dim: int) -> Layout:
    """Theirs holds for each key/value head its query heads, its key and its value.

    (K · (H/K + 2) · D, …) → ours: the rows of all queries, of all keys, of all values. With
    K = H this is GPT-NeoX and BLOOM, with K = 1 the smaller Falcon.
    """
    group = n_heads // n_kv_heads

    def there(fused: Tensor) -> Tensor:
        heads = fused.unflatten(0, (n_kv_heads, group + 2, head_dim))
        parts = heads.split([group, 1, 1], dim=1)
        return torch.cat([part.flatten(0, 2) for part in parts])

    def back(qkv: Tensor) -> Tensor:
        sizes = [n * head_dim for n in (n_heads, n_kv_heads, n_kv_heads)]
        parts = [part.unflatten(0, (n_kv_heads, -1, head_dim)) for part in qkv.split(sizes)]
        return torch.cat(parts, dim=1).flatten(0, 2)

    return elementwise(there, back)


def experts(n: int, parts: int = 1) -> Layout:
    """The matrices of ``n`` experts, ours in one tensor (E, rows, columns).

    Each expert has ``parts`` published matrices of equal size (gate and up), listed together.
    """
    return Layout(
        lambda matrices: torch.cat(matrices).unflatten(0, (n, -1)),
        lambda stack: list(stack.flatten(0, 1).chunk(n * parts)),
    )


def linear(ours: str, *theirs: str, bias: bool = False, layout: Layout = SAME) -> Iterator[Row]:
    """The rows of a weight and, if there is one, its bias."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Row(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), layout)
