"""Look inside: the attention weights that the fused kernel computes and does not return.

Shapes: B batch, T time, H heads, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.model.masks import causal_mask
from minillm.model.transformer import Transformer


@torch.no_grad()
def attention_maps(model: Transformer, tokens: Tensor) -> Tensor:
    """Where every head of every layer looks, on a plain causal forward pass.

    Args:
        tokens: int64 (B, T).

    Returns:
        (n_layers, B, H, T, T) float: row t of a map holds the weights with which position t
        averages the values of positions 0…t; each row sums to 1.
    """
    maps = []

    def record(attention, inputs):
        x, view, _ = inputs
        q, k, _ = attention.heads(x, view.rotation)
        k = k.repeat_interleave(attention.n_heads // attention.n_kv_heads, dim=1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(attention.head_dim)
        mask = causal_mask(torch.arange(x.shape[1], device=x.device), x.shape[1])
        maps.append(scores.masked_fill(~mask, float("-inf")).softmax(dim=-1))

    hooks = [block.attention.register_forward_pre_hook(record) for block in model.blocks]
    try:
        model.hidden(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)
