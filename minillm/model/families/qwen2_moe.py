"""Qwen 1.5 and 2 MoE (Qwen team 2024): small experts, and a shared one behind a gate."""

from __future__ import annotations

from typing import Any

from minillm.model.config import ModelConfig, MoE
from minillm.model.families.common import expect
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder

table = decoder_table


def read(published: dict) -> ModelConfig:
    expect(published, use_sliding_window=False)
    shared = published["shared_expert_intermediate_size"]
    moe = read_experts(published, d_shared=shared, shared_gate=True)
    return read_decoder(published, moe=moe, qkv_bias=published.get("qkv_bias", True))


def write(config: ModelConfig) -> dict:
    return write_decoder(
        config,
        "Qwen2MoeForCausalLM",
        qkv_bias=config.qkv_bias,
        shared_expert_intermediate_size=config.moe.d_shared,
        **write_experts(config),
    )


def read_experts(published: dict, **shared: Any) -> MoE:
    every, dense = published.get("decoder_sparse_step", 1), published.get("mlp_only_layers") or ()
    layers = range(published["num_hidden_layers"])
    return MoE(
        # Version 5 of `transformers` renames the field for Qwen 3.
        n_experts=published.get("num_local_experts") or published["num_experts"],
        n_active=published["num_experts_per_tok"],
        d_expert=published["moe_intermediate_size"],
        renormalize=published.get("norm_topk_prob", False),
        dense_layers=tuple(i for i in layers if i in dense or (i + 1) % every),
        **shared,
    )


def write_experts(config: ModelConfig) -> dict:
    moe = config.moe
    return {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "moe_intermediate_size": moe.d_expert,
        "norm_topk_prob": moe.renormalize,
        "mlp_only_layers": list(moe.dense_layers),
        "decoder_sparse_step": 1,
    }
