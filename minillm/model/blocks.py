"""One layer of a Transformer, in the few orders of norm, attention and MLP that models use.

All map the residual stream (B, T, C) to itself: look around (attention), then think (MLP). They
differ in where the stream is normalised, and in whether the two halves run after each other.
"""

from __future__ import annotations

from torch import Tensor, nn

from minillm.model.attention import Attention, CrossAttention
from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig
from minillm.model.latent import LatentAttention
from minillm.model.layers import make_mlp, make_norm
from minillm.model.masks import View
from minillm.model.moe import MoELayer


def make_block(config: ModelConfig, layer: int) -> nn.Module:
    """Layer number ``layer`` of this configuration."""
    if config.cross_attention:
        return CrossBlock(config, layer)
    if config.residual != "sequential":
        return ParallelBlock(config, layer)
    places = {
        "pre": Block,
        "post": PostNormBlock,
        "sandwich": SandwichBlock,
        "output": OutputNormBlock,
    }
    return places[config.norm_place](config, layer)


def make_attention(config: ModelConfig, layer: int) -> nn.Module:
    return LatentAttention(config, layer) if config.latent else Attention(config, layer)


def make_feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    sparse = config.moe is not None and layer not in config.moe.dense_layers
    return MoELayer(config) if sparse else make_mlp(config)


class Block(nn.Module):
    """Normalise what each half reads (GPT-2, Llama, and nearly every model since)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = make_attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = make_feed_forward(config, layer)

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), view, cache)
        return x + self.mlp(self.mlp_norm(x))


class PostNormBlock(Block):
    """Normalise the sum, as the first Transformer and BERT did; deep ones are hard to train."""

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        x = self.attention_norm(x + self.attention(x, view, cache))
        return self.mlp_norm(x + self.mlp(x))


class SandwichBlock(Block):
    """Normalise what each half reads and what it writes (Gemma 2, GLM-4-0414)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.attention_out_norm = make_norm(config)
        self.mlp_out_norm = make_norm(config)

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        x = x + self.attention_out_norm(self.attention(self.attention_norm(x), view, cache))
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))


class OutputNormBlock(nn.Module):
    """Normalise only what each half writes (OLMo 2, §3.3)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention = make_attention(config, layer)
        self.attention_out_norm = make_norm(config)
        self.mlp = make_feed_forward(config, layer)
        self.mlp_out_norm = make_norm(config)

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        x = x + self.attention_out_norm(self.attention(x, view, cache))
        return x + self.mlp_out_norm(self.mlp(x))


class ParallelBlock(nn.Module):
    """Attention and MLP read the same stream and write side by side (GPT-J, PaLM, Falcon).

    They share one norm, or have one each (GPT-NeoX).
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = make_attention(config, layer)
        if config.residual == "parallel":
            self.mlp_norm = make_norm(config)
        self.mlp = make_feed_forward(config, layer)
        self.has_one_norm = config.residual == "parallel_one_norm"

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        read = self.attention_norm(x)
        thought = self.mlp(read if self.has_one_norm else self.mlp_norm(x))
        return x + self.attention(read, view, cache) + thought


class CrossBlock(Block):
    """A decoder's block that also looks at an encoded text, between attention and MLP.

    (Vaswani et al. 2017, §3.2.3.) The text is ``view.memory``.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.cross_norm = make_norm(config)
        self.cross_attention = CrossAttention(config)
        self.layer = layer

    def forward(self, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), view, cache)
        keys, values = view.memory.keys_values[self.layer]
        x = x + self.cross_attention(self.cross_norm(x), keys, values, view.memory.mask)
        return x + self.mlp(self.mlp_norm(x))
