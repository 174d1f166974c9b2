"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023).

Attention and MLP side by side, each with a norm of its own; a quarter of each head turns.
"""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import (
    activation,
    expect,
    published_activation,
    read_rope,
    read_sizes,
    write_rope,
    write_sizes,
)
from minillm.model.families.naming import named_table
from minillm.model.layouts import Row, fused_heads

LAYER = "gpt_neox.layers.{}"
NAMES = {
    "embedding": "gpt_neox.embed_in",
    "blocks.{}.attention_norm": f"{LAYER}.input_layernorm",
    "blocks.{}.attention.qkv": f"{LAYER}.attention.query_key_value",
    "blocks.{}.attention.out": f"{LAYER}.attention.dense",
    "blocks.{}.mlp_norm": f"{LAYER}.post_attention_layernorm",
    "blocks.{}.mlp.up": f"{LAYER}.mlp.dense_h_to_4h",
    "blocks.{}.mlp.down": f"{LAYER}.mlp.dense_4h_to_h",
    "norm": "gpt_neox.final_layer_norm",
    "unembed": "embed_out",
}


def read(published: dict) -> ModelConfig:
    expect(published, attention_bias=True)
    base, fraction = published.get("rotary_emb_base"), published.get("rotary_pct")
    return ModelConfig(
        **read_sizes(published),
        d_ff=published["intermediate_size"],
        position="rope",
        rope=read_rope(published, base or 10_000.0, fraction or 0.25),
        residual="parallel" if published.get("use_parallel_residual", True) else "sequential",
        norm_eps=published["layer_norm_eps"],
        mlp=activation(published, "hidden_act"),
        tie_embeddings=published.get("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict:
    rope = write_rope(config.rope)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        **write_sizes(config),
        "intermediate_size": config.d_ff,
        "use_parallel_residual": config.residual == "parallel",
        "layer_norm_eps": config.norm_eps,
        "hidden_act": published_activation(config.mlp),
        "tie_word_embeddings": config.tie_embeddings,
        # The names that this family's files have had from the start, beside the shared ones.
        "rotary_emb_base": config.rope.base,
        "rotary_pct": config.rope.fraction,
        **{name: value for name, value in rope.items() if name == "rope_scaling"},
    }


def table(config: ModelConfig) -> Iterator[Row]:
    fused = fused_heads(config.n_heads, config.n_heads, config.head_dim)
    return named_table(config, NAMES, {"attention.qkv": fused})


def canonical(name: str) -> str | None:
    """Older files store the causal mask and the frequencies of the rotation."""
    stored = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    return None if name.endswith(stored) else name
