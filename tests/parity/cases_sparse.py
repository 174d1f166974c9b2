"""Tiny models of the families with mixtures of experts and latent attention."""

import cases_llama
from cases_llama import scaled

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 14}
LATENT = {
    "num_key_value_heads": 6, "rms_norm_eps": 1e-6, "q_lora_rank": 14, "kv_lora_rank": 10,
    "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 14,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip
YARN = scaled(
    "yarn", factor=4.0, beta_fast=4.0, original_max_position_embeddings=30,
    mscale=0.7, mscale_all_dim=0.9,
)  # fmt: skip


def build(name, **changes):
    """Their default kernel for experts wants even sizes."""
    return cases_llama.build(name, experts_implementation="eager", **changes)


CASES = {
    "mixtral": lambda: build("Mixtral", num_local_experts=5, sliding_window=5),
    "qwen2_moe": lambda: build(
        "Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=22, mlp_only_layers=[1]
    ),
    "qwen2_moe_every_other": lambda: build(
        "Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=22, decoder_sparse_step=2,
        norm_topk_prob=True, qkv_bias=False,
    ),
    "qwen3_moe": lambda: build("Qwen3Moe", **EXPERTS, head_dim=8, norm_topk_prob=True),
    "deepseek_v2": lambda: build(
        "DeepseekV2", **LATENT, **YARN, n_group=2, topk_group=1,
        topk_method="group_limited_greedy",
    ),
    "deepseek_v2_lite": lambda: build("DeepseekV2", **LATENT | {"q_lora_rank": None}),
    "deepseek_v3": lambda: build("DeepseekV3", **LATENT, **YARN, n_group=3, topk_group=2),
    "deepseek_v3_half": lambda: build(
        "DeepseekV3", **LATENT, n_group=1, topk_group=1, rope_interleave=False,
        norm_topk_prob=False,
    ),
}  # fmt: skip
