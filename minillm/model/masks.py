"""Who may look at whom.

Masks are boolean: True means "may look at". Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """What an encoder has read, as a decoder's cross-attention wants it.

    Attributes:
        keys_values: for each decoder layer, keys and values (B, H, S, D).
        mask: bool (B, 1, 1, S), True where there is text and no padding; None: everywhere.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor | None = None


@dataclass(frozen=True)
class View:
    """What the positions of one forward pass may see; computed once and shared by all layers.

    Attributes:
        mask: bool (True = may look at) or float (added to the scores), broadcast to (B, H, T, S).
            None means all earlier positions, or simply all if ``causal`` is False.
        local_mask: the same for layers with a sliding window.
        causal: whether the future is hidden.
        rotation: cosine and sine of the positions, where the model uses RoPE.
        memory: an encoded text, where the model has cross-attention.
    """

    mask: Tensor | None = None
    local_mask: Tensor | None = None
    causal: bool = True
    rotation: tuple[Tensor, Tensor] | None = None
    memory: Memory | None = None


def causal_mask(positions: Tensor, n_keys: int) -> Tensor:
    """True where key s is not in the future of a query: s ≤ position.

    Args:
        positions: int64, (T,) or (B, T), positions of the queries.

    Returns:
        bool, (T, S) or (B, 1, T, S), ready to broadcast over heads.
    """
    mask = torch.arange(n_keys, device=positions.device) <= positions[..., None]
    return mask[:, None] if positions.dim() == 2 else mask


def document_mask(documents: Tensor, causal: bool = True) -> Tensor:
    """Only inside one's own document: (B, T) indices → bool (B, 1, T, T)."""
    same = documents[:, :, None] == documents[:, None, :]
    return (same.tril() if causal else same)[:, None]


def prefix_mask(positions: Tensor, n_keys: int, prefix: Tensor) -> Tensor:
    """Causal, but the first ``prefix`` (B,) keys of a row are seen by all: bool (B, 1, T, S)."""
    in_prefix = torch.arange(n_keys, device=positions.device) < prefix[:, None, None, None]
    return causal_mask(positions, n_keys) | in_prefix


def visible(
    positions: Tensor,
    n_keys: int,
    causal: bool = True,
    documents: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """All rules that are given at once: bool (T, S) or (B, 1, T, S)."""
    if not causal:
        mask = torch.ones(n_keys, dtype=torch.bool, device=positions.device).expand(
            positions.shape[-1], n_keys
        )
    elif prefix is not None:
        mask = prefix_mask(positions, n_keys, prefix)
    else:
        mask = causal_mask(positions, n_keys)
    return mask if documents is None else mask & document_mask(documents, causal=False)


def window_mask(positions: Tensor, n_keys: int, window: int) -> Tensor:
    """The ``window`` keys that end at the query: (T,) or (B, T) → bool (T, S) or (B, 1, T, S)."""
    near = torch.arange(n_keys, device=positions.device) > positions[..., None] - window
    return near[:, None] if positions.dim() == 2 else near
