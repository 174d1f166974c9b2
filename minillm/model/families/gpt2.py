"""GPT-2 (Radford et al. 2019): matrices stored transposed, queries, keys and values as one."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig, gpt2_config
from minillm.model.families.common import activation, expect, published_activation
from minillm.model.families.naming import named_table
from minillm.model.layouts import TRANSPOSED, Row

LAYER = "transformer.h.{}"
NAMES = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks.{}.attention_norm": f"{LAYER}.ln_1",
    "blocks.{}.attention.qkv": f"{LAYER}.attn.c_attn",
    "blocks.{}.attention.out": f"{LAYER}.attn.c_proj",
    "blocks.{}.mlp_norm": f"{LAYER}.ln_2",
    "blocks.{}.mlp.up": f"{LAYER}.mlp.c_fc",
    "blocks.{}.mlp.down": f"{LAYER}.mlp.c_proj",
    "norm": "transformer.ln_f",
    "unembed": "lm_head",
}
LAYOUTS = dict.fromkeys(("attention.qkv", "attention.out", "mlp.up", "mlp.down"), TRANSPOSED)


def read(published: dict) -> ModelConfig:
    expect(published, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    expect(published, add_cross_attention=False)
    return gpt2_config(
        published["vocab_size"],
        d_model=published["n_embd"],
        n_layers=published["n_layer"],
        n_heads=published["n_head"],
        d_ff=published.get("n_inner"),
        max_length=published["n_positions"],
        norm_eps=published["layer_norm_epsilon"],
        mlp=activation(published, "activation_function"),
        tie_embeddings=published.get("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": published_activation(config.mlp),
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: ModelConfig) -> Iterator[Row]:
    return named_table(config, NAMES, LAYOUTS)


def canonical(name: str) -> str | None:
    """Some files leave out the prefix, and some store the causal mask."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
