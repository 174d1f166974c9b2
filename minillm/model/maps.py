"""Look inside: the attention weights that the fused kernel computes and does not return.

Shapes: B batch, T time, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.model.attention import Attention, grouped_attention
from minillm.model.transformer import Transformer


@torch.no_grad()
def attention_maps(model: Transformer, tokens: Tensor) -> Tensor:
    """Where every head of every layer looks, on a plain forward pass.

    Args:
        tokens: int64 (B, T).

    Returns:
        (n_layers, B, H, T, T) float: row t of a map holds the weights with which position t
        averages the values of the positions it sees, its own included; each row sums to 1.

    Raises:
        ValueError: latent attention, whose weights are never laid out.
    """
    if model.config.latent:
        raise ValueError("latent attention has no maps here: it attends to latents, not to keys")
    maps = []

    def record(attention: Attention, inputs: tuple) -> None:
        x, view, _ = inputs
        T = x.shape[1]
        q, k, _ = attention.heads(x, view.rotation)
        # What averages one-hot values writes its weights down: so these are the model's own, with
        # whatever mask, bias, window, scale or cap it has.
        one_hot = torch.eye(T, dtype=x.dtype, device=x.device).expand(*k.shape[:3], T)
        mask = view.local_mask if attention.is_local else view.mask
        maps.append(
            grouped_attention(q, k, one_hot, mask, view.causal, attention.scale, attention.softcap)
        )

    hooks = [block.attention.register_forward_pre_hook(record) for block in model.blocks]
    try:
        model.hidden(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)
