"""OPT (Zhang et al. 2022): GPT-3's choices with ReLU; the table of positions starts at row 2."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import (
    activation,
    expect,
    published_activation,
    read_sizes,
    write_sizes,
)
from minillm.model.families.naming import named_table
from minillm.model.layouts import Row, without_rows

LAYER = "model.decoder.layers.{}"
NAMES = {
    "embedding": "model.decoder.embed_tokens",
    "position_embedding": "model.decoder.embed_positions",
    "blocks.{}.attention_norm": f"{LAYER}.self_attn_layer_norm",
    "blocks.{}.attention.qkv": tuple(f"{LAYER}.self_attn.{part}_proj" for part in "qkv"),
    "blocks.{}.attention.out": f"{LAYER}.self_attn.out_proj",
    "blocks.{}.mlp_norm": f"{LAYER}.final_layer_norm",
    "blocks.{}.mlp.up": f"{LAYER}.fc1",
    "blocks.{}.mlp.down": f"{LAYER}.fc2",
    "norm": "model.decoder.final_layer_norm",
    "unembed": "lm_head",
}


def read(published: dict) -> ModelConfig:
    width = published.get("word_embed_proj_dim") or published["hidden_size"]
    if width != published["hidden_size"] or not published.get("do_layer_norm_before", True):
        raise ValueError(
            f"config.json has word_embed_proj_dim={width}, hidden_size={published['hidden_size']}, "
            f"do_layer_norm_before={published.get('do_layer_norm_before', True)}: the one OPT that "
            "norms after each sum and has narrower embeddings (opt-350m) is not supported; take "
            "opt-125m or opt-1.3b"
        )
    expect(published, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True)
    return ModelConfig(
        **read_sizes(published),
        d_ff=published["ffn_dim"],
        mlp=activation(published, "activation_function"),
        bias=published.get("enable_bias", True),
        norm_bias=True,
        tie_embeddings=published.get("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict:
    return {
        "architectures": ["OPTForCausalLM"],
        **write_sizes(config),
        "word_embed_proj_dim": config.d_model,
        "ffn_dim": config.d_ff,
        "activation_function": published_activation(config.mlp),
        "enable_bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: ModelConfig) -> Iterator[Row]:
    return named_table(config, NAMES, {"position_embedding": without_rows(2)})


def canonical(name: str) -> str:
    """Some files leave out the first prefix."""
    return f"model.{name}" if name.startswith("decoder.") else name
