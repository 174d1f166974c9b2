"""BLOOM (BigScience 2022): ALiBi's slopes for positions, and a norm after the embedding."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.naming import named_table
from minillm.model.layouts import Row, fused_heads

LAYER = "transformer.h.{}"
NAMES = {
    "embedding": "transformer.word_embeddings",
    "embedding_norm": "transformer.word_embeddings_layernorm",
    "blocks.{}.attention_norm": f"{LAYER}.input_layernorm",
    "blocks.{}.attention.qkv": f"{LAYER}.self_attention.query_key_value",
    "blocks.{}.attention.out": f"{LAYER}.self_attention.dense",
    "blocks.{}.mlp_norm": f"{LAYER}.post_attention_layernorm",
    "blocks.{}.mlp.up": f"{LAYER}.mlp.dense_h_to_4h",
    "blocks.{}.mlp.down": f"{LAYER}.mlp.dense_4h_to_h",
    "norm": "transformer.ln_f",
    "unembed": "lm_head",
}


def read(published: dict) -> ModelConfig:
    expect(published, apply_residual_connection_post_layernorm=False)
    # Older files have other names for the width and the heads.
    width = published.get("n_embed") or published["hidden_size"]
    n_heads = published.get("num_attention_heads") or published["n_head"]
    return ModelConfig(
        vocab_size=published["vocab_size"],
        d_model=width,
        n_layers=published["n_layer"],
        n_heads=n_heads,
        max_length=published.get("seq_length", 2048),
        position="alibi",
        embedding_norm=True,
        norm_eps=published["layer_norm_epsilon"],
        mlp="gelu_tanh",
        tie_embeddings=published.get("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict:
    return {
        "architectures": ["BloomForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "seq_length": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: ModelConfig) -> Iterator[Row]:
    fused = fused_heads(config.n_heads, config.n_heads, config.head_dim)
    return named_table(config, NAMES, {"attention.qkv": fused})


def canonical(name: str) -> str:
    """Some files leave out the prefix."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
