"""Multi-head attention, the one place where positions exchange information.

Shapes: B batch, T time (queries), S time (keys), C channels, H query heads, K key/value heads,
D head size. Masks are boolean: True means "may look at".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.layers import rotate


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention in four lines (Vaswani et al. 2017, eq. 1).

    The readable form, used to check and to draw; the model calls PyTorch's fused kernel.

    Args:
        q: (…, T, D) queries; k: (…, S, D) keys; v: (…, S, D) values.
        mask: boolean, broadcast to (…, T, S); True where a query may look at a key.

    Returns:
        (…, T, D): for each query, the average of the values weighted by softmax(q·k / √D).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def causal_mask(positions: Tensor, n_keys: int) -> Tensor:
    """True where key s is not in the future of a query: s ≤ position.

    Args:
        positions: int64, (T,) or (B, T), positions of the queries.

    Returns:
        bool, (T, S) or (B, 1, T, S), ready to broadcast over heads.
    """
    mask = torch.arange(n_keys, device=positions.device) <= positions[..., None]
    return mask[:, None] if positions.dim() == 2 else mask


def document_mask(documents: Tensor) -> Tensor:
    """Causal, and only inside one's own document: (B, T) indices → bool (B, 1, T, T)."""
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril()[:, None]


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al. 2023) and a cache.

    (B, T, C) → (B, T, C). Queries, keys and values come from one matrix product.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim, self.layer = config.head_dim, layer
        width = config.n_heads * config.head_dim
        kv_width = config.n_kv_heads * config.head_dim
        self.sizes = [width, kv_width, kv_width]
        self.qkv = nn.Linear(config.d_model, sum(self.sizes), bias=config.bias)
        self.out = nn.Linear(width, config.d_model, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            mask: boolean, broadcast to (B, H, T, S); None means plain causal over the last T keys.
            rotation: cos and sin of the positions, where the model uses RoPE.
            cache: holds the keys and values of earlier tokens and receives the new ones.
        """
        B, T, _ = x.shape
        q, k, v = self.heads(x, rotation)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = grouped_attention(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))

    def heads(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D), turned by RoPE where it is used."""
        B, T, _ = x.shape
        parts = self.qkv(x).split(self.sizes, dim=-1)
        q, k, v = (part.view(B, T, -1, self.head_dim).transpose(1, 2) for part in parts)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return [q, k, v]


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's fused attention for q (B, H, T, D) and k, v (B, K, S, D), K dividing H."""
    B, H, T, D = q.shape
    K = k.shape[1]
    if T == 1 and (mask is None or mask.shape[1:3] == (1, 1)):
        # One new token: the heads of a group are like H/K queries to the same keys, which saves
        # copying the cache. It is the newest token, so without a mask it may look everywhere.
        grouped = q.view(B, K, H // K, D)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).view(B, H, 1, D)
    if K != H:
        k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
