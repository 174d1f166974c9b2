"""DeepSeek-V3 and R1: experts by sigmoid, balanced by a bias that only the choice sees."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families import deepseek
from minillm.model.families.common import expect

table, unread = deepseek.table, deepseek.unread


def read(published: dict) -> ModelConfig:
    expect(published, scoring_func="sigmoid", topk_method="noaux_tc")
    return deepseek.read_deepseek(
        published,
        pairs="interleaved" if published.get("rope_interleave", True) else "half",
        scores="sigmoid",
        balance_bias=True,
        renormalize=published.get("norm_topk_prob", True),
        n_groups=published["n_group"],
        n_active_groups=published["topk_group"],
    )


def write(config: ModelConfig) -> dict:
    return deepseek.write_deepseek(
        config,
        "DeepseekV3ForCausalLM",
        rope_interleave=config.rope.pairs == "interleaved",
        norm_topk_prob=config.moe.renormalize,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
    )
