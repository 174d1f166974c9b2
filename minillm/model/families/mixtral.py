"""Mixtral (Jiang et al. 2024): Mistral with eight MLPs, two of which see each token."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig, MoE
from minillm.model.families.common import read_rope
from minillm.model.families.decoder import (
    ExpertNames,
    decoder_table,
    read_decoder,
    read_window,
    write_decoder,
)
from minillm.model.layouts import Row

NAMES = ExpertNames(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts",
    gate_up=("w1", "w3"),
    down="w2",
)


def read(published: dict) -> ModelConfig:
    moe = MoE(
        n_experts=published["num_local_experts"],
        n_active=published["num_experts_per_tok"],
        d_expert=published["intermediate_size"],
    )
    rope = read_rope(published, base=1_000_000.0)
    return read_decoder(published, moe=moe, rope=rope, **read_window(published))


def write(config: ModelConfig) -> dict:
    return write_decoder(
        config,
        "MixtralForCausalLM",
        num_local_experts=config.moe.n_experts,
        num_experts_per_tok=config.moe.n_active,
        sliding_window=config.window,
    )


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, expert_names=NAMES)
