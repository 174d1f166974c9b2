"""StarCoder2 (Lozhkov et al. 2024): Llama's attention in GPT-2's blocks, with a sliding window."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import activation
from minillm.model.families.decoder import read_decoder, read_window, write_decoder
from minillm.model.families.naming import named_table
from minillm.model.layouts import Row

LAYER = "model.layers.{}"
NAMES = {
    "embedding": "model.embed_tokens",
    "blocks.{}.attention_norm": f"{LAYER}.input_layernorm",
    "blocks.{}.attention.qkv": tuple(f"{LAYER}.self_attn.{part}_proj" for part in "qkv"),
    "blocks.{}.attention.out": f"{LAYER}.self_attn.o_proj",
    "blocks.{}.mlp_norm": f"{LAYER}.post_attention_layernorm",
    "blocks.{}.mlp.up": f"{LAYER}.mlp.c_fc",
    "blocks.{}.mlp.down": f"{LAYER}.mlp.c_proj",
    "norm": "model.norm",
    "unembed": "lm_head",
}


def read(published: dict) -> ModelConfig:
    return read_decoder(
        published,
        norm="layer",
        norm_eps=published["norm_epsilon"],
        norm_bias=True,
        mlp=activation(published, "hidden_act"),
        bias=published.get("use_bias", True),
        tie_embeddings=published.get("tie_word_embeddings", True),
        **read_window(published),
    )


def write(config: ModelConfig) -> dict:
    return write_decoder(
        config,
        "Starcoder2ForCausalLM",
        norm_epsilon=config.norm_eps,
        use_bias=config.bias,
        sliding_window=config.window,
    )


def table(config: ModelConfig) -> Iterator[Row]:
    return named_table(config, NAMES)
