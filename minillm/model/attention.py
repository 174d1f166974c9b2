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
from minillm.model.layers import make_norm
from minillm.model.masks import View, causal_mask
from minillm.model.positions import rotate, rotate_interleaved


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


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al. 2023) and a cache.

    (B, T, C) → (B, T, C). Queries, keys and values come from one matrix product.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim, self.layer = config.head_dim, layer
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.is_local = config.window is not None and layer not in config.global_layers
        self.rotates = config.position == "rope" and layer not in config.rope.skip_layers
        self.rotate = rotate if config.rope.pairs == "half" else rotate_interleaved
        width = config.n_heads * config.head_dim
        kv_width = config.n_kv_heads * config.head_dim
        self.sizes = [width, kv_width, kv_width]
        self.qkv = nn.Linear(config.d_model, sum(self.sizes), bias=config.qkv_bias)
        self.out = nn.Linear(width, config.d_model, bias=config.bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = make_norm(config, config.head_dim if per_head else width)
            self.k_norm = make_norm(config, config.head_dim if per_head else kv_width)

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            view: what the positions may see.
            cache: holds the keys and values of earlier tokens and receives the new ones.
        """
        B, T, _ = x.shape
        q, k, v = self.heads(x, view.rotation)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mask = view.local_mask if self.is_local else view.mask
        mixed = grouped_attention(q, k, v, mask, view.causal, self.scale, self.softcap)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))

    def heads(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D), turned by RoPE where it is used."""
        B, T, _ = x.shape
        qkv = self.qkv(x)
        if self.qk_norm != "none":
            qkv = self.normalise(qkv)
        turning = self.rotates and rotation is not None
        # Queries and keys turn in one go.
        sizes = [sum(self.sizes[:2]), self.sizes[2]] if turning else self.sizes
        parts = [
            part.view(B, T, -1, self.head_dim).transpose(1, 2)
            for part in qkv.split_with_sizes(sizes, dim=-1)
        ]
        if turning:
            qk = self.rotate(parts[0], *rotation)
            parts[:1] = qk.split_with_sizes([self.n_heads, self.n_kv_heads], dim=1)
            if torch.is_grad_enabled():  # a view would keep all of qkv for the backward pass
                parts[-1] = parts[-1].contiguous()
        return parts

    def normalise(self, qkv: Tensor) -> Tensor:
        """Give queries and keys length √n, all of a position's together or each head's alone."""
        q, k, v = qkv.split_with_sizes(self.sizes, dim=-1)
        if self.qk_norm == "head":
            q, k = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.qk_norm == "head":
            q, k = q.flatten(-2), k.flatten(-2)
        return torch.cat((q, k, v), dim=-1)


class CrossAttention(nn.Module):
    """Queries from the decoder, keys and values from what an encoder has read.

    The keys and values of a text are the same for every target token: `remember` computes them
    once.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.scale = config.attention_scale
        width = config.n_heads * config.head_dim
        self.q = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        self.kv = nn.Linear(config.d_model, 2 * width, bias=config.qkv_bias)
        self.out = nn.Linear(width, config.d_model, bias=config.bias)

    def remember(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of an encoded text (B, S, C)."""
        k, v = self.kv(encoded).chunk(2, dim=-1)
        return self.split_heads(k), self.split_heads(v)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, C) → (B, T, C); mask bool (B, 1, 1, S), True for keys that are not padding."""
        q = self.split_heads(self.q(x))
        mixed = grouped_attention(q, keys, values, mask, causal=False, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_heads, self.head_dim).transpose(1, 2)


def grouped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """PyTorch's fused attention for grouped heads.

    Args:
        q: (B, H, T, D); k, v: (B, K, S, D), K dividing H.
        mask: bool (True = may look at) or float (added to the scores), broadcast to (B, H, T, S).
            Without one, a ``causal`` query sees the keys up to its own position, with T = S or
            T = 1.
        scale: multiplies the scores; None is 1/√D.
        softcap: c makes the scores c · tanh(scores / c); the fused kernels cannot do that.
    """
    B, H, T, D = q.shape
    K = k.shape[1]
    if softcap is not None:
        return softcapped_attention(q, k, v, mask, causal, scale, softcap)
    if T == 1 and (mask is None or mask.dim() == 2 or mask.shape[1] == 1):
        # One new token: the heads of a group are like H/K queries to the same keys, which saves
        # copying the cache. It is the newest token, so without a mask it may look everywhere.
        grouped = q.view(B, K, H // K, D)
        mixed = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
        return mixed.view(B, H, 1, -1)
    is_causal = causal and mask is None and T > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=K != H
    )


def softcapped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float,
) -> Tensor:
    """Attention whose scores cannot leave ±softcap (Gemma 2, §2); as `grouped_attention`."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None and causal and q.shape[2] > 1:
        mask = causal_mask(torch.arange(q.shape[2], device=q.device), k.shape[2])
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    return scores.softmax(dim=-1) @ v
