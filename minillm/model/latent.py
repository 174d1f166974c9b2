"""Multi-head latent attention: all heads share one short vector a token, and only it is cached.

Ordinary attention caches the keys and values of every head. Here a token is squeezed into a latent
of ``kv_rank`` numbers, from which each head makes its own key and value. The latent alone is
cached. A rotation cannot be made afterwards from what is cached, because it depends on the
position; so a few rotary channels, shared by all heads, are cached beside it ("decoupled RoPE").

Two ways to compute the same thing:

- *expanded*: make every head's keys and values, then attend as always. Best when many tokens are
  read at once.
- *absorbed*: keys are k = U c, so q · k = q · (U c) = (Uᵀ q) · c. Multiply the new query with the
  up-projection once, instead of every cached latent; the averaging of values commutes in the same
  way. Attention then runs on the cache as it is, and nothing is expanded. Best for decoding.

Source: DeepSeek-V2 (DeepSeek-AI 2024), §2.1 and appendix C.

Shapes: B batch, T time (queries), S time (keys), C channels, H heads, D head size, R latent rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.attention import grouped_attention
from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.layers import make_norm
from minillm.model.masks import View
from minillm.model.positions import rotate, rotate_interleaved


class LatentAttention(nn.Module):
    """Attention whose keys and values come from a latent: (B, T, C) → (B, T, C).

    Parameters: ``kv_down`` makes the latent and, in its last rows, the rotary key; the rows of
    ``kv_up`` are, head after head, those of the key and then those of the value. A query has
    ``head_dim`` channels to meet the key and then ``rope_dim`` to meet the rotary key.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        latent = config.latent
        self.layer, self.n_heads, self.softcap = layer, config.n_heads, config.attention_softcap
        self.rank, self.rope_dim, self.key_dim = latent.kv_rank, latent.rope_dim, config.head_dim
        self.value_dim = latent.value_dim or config.head_dim
        self.scale = config.attention_scale or (self.key_dim + self.rope_dim) ** -0.5
        self.rotates = layer not in config.rope.skip_layers
        self.rotate = rotate if config.rope.pairs == "half" else rotate_interleaved
        query_width = self.n_heads * (self.key_dim + self.rope_dim)
        if latent.q_rank is None:
            self.q = nn.Linear(config.d_model, query_width, bias=False)
        else:
            self.q_down = nn.Linear(config.d_model, latent.q_rank, bias=config.qkv_bias)
            self.q_norm = make_norm(config, latent.q_rank)
            self.q_up = nn.Linear(latent.q_rank, query_width, bias=False)
        self.kv_down = nn.Linear(config.d_model, self.rank + self.rope_dim, bias=config.qkv_bias)
        self.kv_norm = make_norm(config, self.rank)
        up_width = self.n_heads * (self.key_dim + self.value_dim)
        # No bias here: the absorbed path needs keys and values to be linear in the latent.
        self.kv_up = nn.Linear(self.rank, up_width, bias=False)
        self.out = nn.Linear(self.n_heads * self.value_dim, config.d_model, bias=config.bias)

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        """Attend; arguments as `Attention.forward`. The cache holds what `latents` returns."""
        rotation = view.rotation if self.rotates else None
        q, latents = self.queries(x, rotation), self.latents(x, rotation)
        if cache is None:
            mixed = self.expanded(q, latents, view)
        else:
            latents, _ = cache.append(self.layer, latents, latents[..., :0])
            path = self.absorbed if self.absorbing_is_cheaper(x.shape[1]) else self.expanded
            mixed = path(q, latents, view)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def queries(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, C) → (B, H, T, head_dim + rope_dim), the last channels rotated."""
        q = self.q_up(self.q_norm(self.q_down(x))) if hasattr(self, "q_down") else self.q(x)
        q = q.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        if rotation is None:
            return q
        plain, turning = q.split([self.key_dim, self.rope_dim], dim=-1)
        return torch.cat((plain, self.rotate(turning, *rotation)), dim=-1)

    def latents(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """What is cached of each token, as one head: (B, T, C) → (B, 1, T, R + rope_dim)."""
        latent, rope_key = self.kv_down(x).split([self.rank, self.rope_dim], dim=-1)
        latent, rope_key = self.kv_norm(latent)[:, None], rope_key[:, None]
        if rotation is not None:
            rope_key = self.rotate(rope_key, *rotation)
        return torch.cat((latent, rope_key), dim=-1)

    def expanded(self, q: Tensor, latents: Tensor, view: View) -> Tensor:
        """Every head's keys and values, then ordinary attention: → (B, H, T, value_dim)."""
        latent, rope_key = latents.split([self.rank, self.rope_dim], dim=-1)
        kv = self.kv_up(latent[:, 0]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k, v = kv.split([self.key_dim, self.value_dim], dim=-1)  # (B, H, S, …)
        k = torch.cat((k, rope_key.expand(-1, self.n_heads, -1, -1)), dim=-1)
        # Fused kernels want values as wide as keys: filling up with zeros costs less than doing
        # without the kernel.
        v = F.pad(v, (0, max(0, k.shape[-1] - self.value_dim)))
        mixed = grouped_attention(q, k, v, view.mask, view.causal, self.scale, self.softcap)
        return mixed[..., : self.value_dim]

    def absorbed(self, q: Tensor, latents: Tensor, view: View) -> Tensor:
        """Attention on the latents themselves, one key head for all: → (B, H, T, value_dim)."""
        key_up, value_up = self.kv_up.weight.unflatten(0, (self.n_heads, -1)).split(
            [self.key_dim, self.value_dim], dim=1
        )  # (H, head_dim, R) and (H, value_dim, R)
        q, q_rope = q.split([self.key_dim, self.rope_dim], dim=-1)
        q = torch.cat((q @ key_up, q_rope), dim=-1)  # (B, H, T, R + rope_dim)
        if q.shape[2] > 1:  # every head reads the same keys; `expand` copies nothing
            latents = latents.expand(-1, self.n_heads, -1, -1)
        # Again values as wide as keys: average the rotary keys too, and drop them.
        mixed = grouped_attention(
            q, latents, latents, view.mask, view.causal, self.scale, self.softcap
        )
        return mixed[..., : self.rank] @ value_up.mT

    def absorbing_is_cheaper(self, n_queries: int) -> bool:
        """Whether fewer multiplications are needed on the latents than on expanded keys.

        For S cached tokens and one head, expanding costs S·R·(D_k + D_v), once. After that a
        query and a key cost D_k + D_v, and on the latents 2R (the rotary part is the same in
        both). So it depends on the number of queries alone: DeepSeek-V3 (R = 512, D = 128)
        absorbs up to 170 of them.
        """
        head = self.key_dim + self.value_dim
        return n_queries * (2 * self.rank - head) < self.rank * head
