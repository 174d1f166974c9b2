"""DeepSeek-V2 and V2-Lite: experts by softmax, from the best groups or from all."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families import deepseek
from minillm.model.families.common import expect

table = deepseek.table


def read(published: dict) -> ModelConfig:
    """``norm_topk_prob`` is refused: `transformers` ignores it, DeepSeek's own code does not."""
    expect(published, scoring_func="softmax", norm_topk_prob=False)
    routing = {"scores": "softmax", "renormalize": False}
    method = published.get("topk_method", "greedy")
    if method == "group_limited_greedy":
        routing |= {"n_groups": published["n_group"], "n_active_groups": published["topk_group"]}
    elif method != "greedy":
        raise ValueError(
            f"config.json has topk_method={method!r}: known are 'greedy', 'group_limited_greedy'"
        )
    return deepseek.read_deepseek(published, "interleaved", **routing)


def write(config: ModelConfig) -> dict:
    grouped = config.moe.n_groups > 1
    return deepseek.write_deepseek(
        config,
        "DeepseekV2ForCausalLM",
        topk_method="group_limited_greedy" if grouped else "greedy",
        norm_topk_prob=config.moe.renormalize,
    )
