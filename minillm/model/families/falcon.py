"""Falcon (Almazrouei et al. 2023): attention and MLP side by side, few key/value heads.

The 7B shares one norm and one key/value head; the 40B has two norms and groups of heads; the first
models (Falcon-RW) run one half after the other and use ALiBi, with slopes divided by √D like the
scores. (`transformers` rounds those slopes to bfloat16; ours are exact.)
"""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import (
    Fields,
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

LAYER = "transformer.h.{}"
NAMES = {
    "embedding": "transformer.word_embeddings",
    "blocks.{}.attention.qkv": f"{LAYER}.self_attention.query_key_value",
    "blocks.{}.attention.out": f"{LAYER}.self_attention.dense",
    "blocks.{}.mlp.up": f"{LAYER}.mlp.dense_h_to_4h",
    "blocks.{}.mlp.down": f"{LAYER}.mlp.dense_4h_to_h",
    "norm": "transformer.ln_f",
    "unembed": "lm_head",
}
# Our two norms of a block, by how its halves are joined.
NORMS = {
    "parallel": ("ln_attn", "ln_mlp"),
    "parallel_one_norm": ("input_layernorm",),
    "sequential": ("input_layernorm", "post_attention_layernorm"),
}


def read(published: dict) -> ModelConfig:
    n_heads, grouped = published["num_attention_heads"], published.get("new_decoder_architecture")
    residual, n_kv_heads = "parallel_one_norm", n_heads
    if grouped:
        expect(published, parallel_attn=True)
        n_kv_heads = published.get("num_kv_heads") or n_heads
        n_norms = published.get("num_ln_in_parallel_attn") or 2
        residual = "parallel" if n_norms == 2 else "parallel_one_norm"
    elif published.get("multi_query", True):
        n_kv_heads = 1
    if not published.get("parallel_attn", True):
        residual = "sequential"
    positions = {"position": "rope", "rope": read_rope(published)}
    if published.get("alibi"):
        head_dim = published["hidden_size"] // n_heads
        positions = {"position": "alibi", "alibi_scale": head_dim**-0.5}
    return ModelConfig(
        **read_sizes(Fields({"max_position_embeddings": 2048} | published)),
        n_kv_heads=n_kv_heads,
        d_ff=published.get("ffn_hidden_size"),
        residual=residual,
        norm_eps=published["layer_norm_epsilon"],
        mlp=activation(published, "activation") if "activation" in published else "gelu",
        bias=published.get("bias", False),
        norm_bias=True,
        tie_embeddings=published.get("tie_word_embeddings", True),
        **positions,
    )


def write(config: ModelConfig) -> dict:
    grouped = config.n_kv_heads not in (1, config.n_heads) or config.residual == "parallel"
    return {
        "architectures": ["FalconForCausalLM"],
        **write_sizes(config),
        "num_kv_heads": config.n_kv_heads,
        "new_decoder_architecture": grouped,
        "multi_query": config.n_kv_heads == 1,
        "parallel_attn": config.residual != "sequential",
        "num_ln_in_parallel_attn": 2 if config.residual == "parallel" else 1,
        "ffn_hidden_size": config.d_ff,
        "alibi": config.position == "alibi",
        "layer_norm_epsilon": config.norm_eps,
        "activation": published_activation(config.mlp),
        "bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
        **(write_rope(config.rope) if config.position == "rope" else {}),
    }


def table(config: ModelConfig) -> Iterator[Row]:
    ours = ("attention_norm", "mlp_norm")
    norms = {
        f"blocks.{{}}.{our}": f"{LAYER}.{their}"
        for our, their in zip(ours, NORMS[config.residual], strict=False)
    }
    fused = fused_heads(config.n_heads, config.n_kv_heads, config.head_dim)
    return named_table(config, NAMES | norms, {"attention.qkv": fused})
