"""DeepSeek-V2 and V3/R1 (DeepSeek-AI 2024): latent attention and many small experts.

Files of V3 also hold modules that predict further tokens, as one more layer. `transformers` and
the files it writes leave them out, and so does this reader.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from minillm.model.config import Latent, ModelConfig, MoE
from minillm.model.families.common import expect, read_rope, yarn_mscale
from minillm.model.families.decoder import (
    ExpertNames,
    decoder_table,
    read_decoder,
    write_decoder,
)
from minillm.model.layouts import Row, linear

NAMES = ExpertNames(shared="mlp.shared_experts")
LATENT_EPS = 1e-6  # of the norms of the latents, whatever the file says of the others


def read_deepseek(published: dict, pairs: str, **routing: Any) -> ModelConfig:
    """What V2 and V3 share; ``routing`` holds the further fields of the MoE."""
    expect(published, attention_bias=False, mlp_bias=False, moe_layer_freq=1)
    expect(published, rms_norm_eps=LATENT_EPS)
    expect(published, num_key_value_heads=published["num_attention_heads"])
    config = read_decoder(
        published,
        rope=read_rope(published, pairs=pairs),
        head_dim=published["qk_nope_head_dim"],
        latent=Latent(
            kv_rank=published["kv_lora_rank"],
            rope_dim=published["qk_rope_head_dim"],
            q_rank=published["q_lora_rank"],
            value_dim=published["v_head_dim"],
        ),
        moe=MoE(
            n_experts=published["n_routed_experts"],
            n_active=published["num_experts_per_tok"],
            d_expert=published["moe_intermediate_size"],
            d_shared=published["n_shared_experts"] * published["moe_intermediate_size"],
            scale=published.get("routed_scaling_factor", 1.0),
            dense_layers=tuple(
                range(min(published["first_k_dense_replace"], published["num_hidden_layers"]))
            ),
            **routing,
        ),
    )
    return dataclasses.replace(config, attention_scale=read_attention_scale(published, config))


def read_attention_scale(published: dict, config: ModelConfig) -> float | None:
    """YaRN's factor on the scores: DeepSeek puts it here, squared, instead of on cos and sin."""
    rope = {**(published.get("rope_scaling") or {}), **(published.get("rope_parameters") or {})}
    if config.rope.scaling is None or not rope.get("mscale_all_dim"):
        return None
    mscale = yarn_mscale(config.rope.scaling.factor, rope["mscale_all_dim"])
    return default_scale(config) * mscale * mscale


def default_scale(config: ModelConfig) -> float:
    return (config.head_dim + config.latent.rope_dim) ** -0.5


def write_deepseek(config: ModelConfig, architecture: str, **others: Any) -> dict:
    moe, latent = config.moe, config.latent
    fields = write_decoder(
        config,
        architecture,
        head_dim=latent.rope_dim,
        qk_nope_head_dim=config.head_dim,
        qk_rope_head_dim=latent.rope_dim,
        v_head_dim=latent.value_dim or config.head_dim,
        kv_lora_rank=latent.kv_rank,
        q_lora_rank=latent.q_rank,
        n_routed_experts=moe.n_experts,
        num_experts_per_tok=moe.n_active,
        moe_intermediate_size=moe.d_expert,
        n_shared_experts=moe.d_shared // moe.d_expert,
        routed_scaling_factor=moe.scale,
        n_group=moe.n_groups,
        topk_group=moe.n_active_groups,
        first_k_dense_replace=len(moe.dense_layers),
        **others,
    )
    if config.attention_scale and config.rope.scaling:
        mscale = (config.attention_scale / default_scale(config)) ** 0.5
        per_weight = yarn_mscale(config.rope.scaling.factor) - 1
        fields["rope_scaling"]["mscale_all_dim"] = (mscale - 1) / per_weight
        total = config.rope.scaling.attention_factor * mscale
        fields["rope_scaling"]["mscale"] = (total - 1) / per_weight
    return fields


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, attention=latent_rows, expert_names=NAMES)


def latent_rows(config: ModelConfig, ours: str, theirs: str) -> Iterator[Row]:
    if config.latent.q_rank is None:
        yield from linear(f"{ours}.q", f"{theirs}.q_proj")
    else:
        yield from linear(f"{ours}.q_down", f"{theirs}.q_a_proj")
        yield from linear(f"{ours}.q_norm", f"{theirs}.q_a_layernorm")
        yield from linear(f"{ours}.q_up", f"{theirs}.q_b_proj")
    yield from linear(f"{ours}.kv_down", f"{theirs}.kv_a_proj_with_mqa")
    yield from linear(f"{ours}.kv_norm", f"{theirs}.kv_a_layernorm")
    yield from linear(f"{ours}.kv_up", f"{theirs}.kv_b_proj")
    yield from linear(f"{ours}.out", f"{theirs}.o_proj")


def unread(config: ModelConfig) -> str:
    """How the names of further-token modules begin, which stand behind the last layer."""
    return f"model.layers.{config.n_layers}."
