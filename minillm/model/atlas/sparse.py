"""Mixtures of experts: more weights than any one token meets."""

from __future__ import annotations

import dataclasses

from minillm.model.atlas.classics import V1_1, t5_pair
from minillm.model.atlas.dense import OPEN, QWEN_3, llama
from minillm.model.atlas.entry import Entry
from minillm.model.config import Latent, ModelConfig, MoE, Rope, RopeScaling


def mixtral(shape, vocab_size: int = 32_000, max_length: int = 32_768) -> ModelConfig:
    moe = MoE(n_experts=8, n_active=2, d_expert=shape[3])
    return llama(shape, vocab_size, max_length, moe=moe, rope=Rope(base=1_000_000.0))


def deepseek(shape, moe: MoE, q_rank: int | None, **changes) -> ModelConfig:
    yarn = RopeScaling("yarn", 40.0, 4096)
    return llama(
        shape, **changes, max_length=163_840, head_dim=128, norm_eps=1e-6, moe=moe,
        latent=Latent(kv_rank=512, rope_dim=64, q_rank=q_rank, value_dim=128),
        rope=Rope(pairs="interleaved", scaling=yarn),
    )  # fmt: skip


V2 = MoE(
    160, 6, 1536, d_shared=2 * 1536, renormalize=False, scale=16.0, n_groups=8, n_active_groups=3,
    dense_layers=(0,),
)  # fmt: skip
V2_LITE = MoE(64, 6, 1408, d_shared=2 * 1408, renormalize=False, dense_layers=(0,))
V3 = MoE(
    256, 8, 2048, d_shared=2048, scores="sigmoid", scale=2.5, n_groups=8, n_active_groups=4,
    balance_bias=True, dense_layers=(0, 1, 2),
)  # fmt: skip
V3_CONFIG = deepseek((7168, 61, 128, 18432), V3, 1536, vocab_size=129_280)
V3_NOTE = (
    "Extra: the balancing bias of each expert in 58 layers, set by a rule and not by gradients. "
    "The module that predicts a second token comes on top, with 11.5B weights of its own. The "
    "printed 36.7B is said to include the 0.9B of the input embedding; with it we count 37.6B, so "
    "it is met only without."
)


def cpm2_moe() -> dict[str, ModelConfig]:
    stacks = t5_pair(4096, 24, 64, 10240, 64, 26240, **V1_1)
    moe = MoE(n_experts=32, n_active=1, d_expert=10240)
    return {name: dataclasses.replace(stack, moe=moe) for name, stack in stacks.items()}


ENTRIES = [
    Entry(
        "CPM-2-MoE", "Tsinghua, BAAI", "2021-06", **cpm2_moe(), published="198B",
        source="Zhang et al. 2021, CPM-2, §3 and Table 2", licence="research only",
        published_active="11B",
    ),
    Entry(
        "Mixtral-8x7B", "Mistral", "2023-12", mixtral((4096, 32, 32, 14336, 8)),
        "46,702,792,704", "released weights mistralai; Jiang et al. 2024, §1 and Table 1", OPEN,
        published_active="12.9B",
    ),
    Entry(
        "Mixtral-8x22B", "Mistral", "2024-04", mixtral((6144, 56, 48, 16384, 8), max_length=65_536),
        "140,620,634,112", "released weights and announcement mistralai", OPEN,
        published_active="39B",
    ),
    Entry(
        "Grok-1", "xAI", "2024-03",
        llama(
            (6144, 64, 48, 32768, 8), 131_072, 8192, mlp="geglu", norm_place="sandwich",
            attention_softcap=30.0, tie_embeddings=True, embedding_scale=6144**0.5,
            logit_scale=3**-0.5, moe=MoE(8, 2, 32768),
        ),
        "315,684,820,992", "xai-org/grok-1: tensors of the checkpoint, run.py; README: 314B", OPEN,
        note="No active count is printed, only that 25% of the weights are active: that is the "
        "share 2/8 of the experts, not of all weights.",
    ),
    Entry(
        "Qwen1.5-MoE-A2.7B", "Alibaba", "2024-02",
        llama(
            (2048, 24, 16, 5632), 151_936, 8192, qkv_bias=True, norm_eps=1e-6,
            rope=Rope(base=1_000_000.0),
            moe=MoE(60, 4, 1408, d_shared=5632, shared_gate=True, renormalize=False),
        ),
        "14,315,784,192", "model card Qwen/Qwen1.5-MoE-A2.7B", "Tongyi Qianwen",
        published_active="2.7B",
    ),
    Entry(
        "Qwen2-57B-A14B", "Alibaba", "2024-06",
        llama(
            (3584, 28, 28, 18944, 4), 151_936, 32_768, qkv_bias=True, norm_eps=1e-6,
            rope=Rope(base=1_000_000.0),
            moe=MoE(64, 8, 2560, d_shared=20480, shared_gate=True, renormalize=False),
        ),
        "57,408,658,944", "model card Qwen/Qwen2-57B-A14B; Yang et al. 2024, Table 1", OPEN,
        published_active="14B", tokens=4.5e12,
    ),
    Entry(
        "Qwen3-30B-A3B", "Alibaba", "2025-04",
        llama((2048, 48, 32, 6144, 4), 151_936, 40_960, moe=MoE(128, 8, 768), **QWEN_3),
        "30,532,122,624", "model card Qwen/Qwen3-30B-A3B", OPEN, published_active="3.3B",
        tokens=36e12,
    ),
    Entry(
        "Qwen3-235B-A22B", "Alibaba", "2025-04",
        llama((4096, 94, 64, 12288, 4), 151_936, 40_960, moe=MoE(128, 8, 1536), **QWEN_3),
        "235,093,634,560", "model card Qwen/Qwen3-235B-A22B", OPEN, published_active="22B",
        tokens=36e12,
    ),
    Entry(
        "DeepSeek-V2", "DeepSeek", "2024-05",
        deepseek((5120, 60, 128, 12288), V2, 1536, vocab_size=102_400),
        "235,741,434,880", "released weights deepseek-ai; DeepSeek-V2 2024, §3.1.2", "DeepSeek",
        published_active="21B", skips_lookup=True, tokens=8.1e12,
    ),
    Entry(
        "DeepSeek-V2-Lite", "DeepSeek", "2024-05",
        deepseek((2048, 27, 16, 10944), V2_LITE, None, vocab_size=102_400),
        "15,706,484,224", "released weights deepseek-ai; DeepSeek-V2 2024, Appendix B", "DeepSeek",
        published_active="2.4B", skips_lookup=True, tokens=5.7e12,
    ),
    *(
        Entry(
            name, "DeepSeek", date, V3_CONFIG, "671,026,419,200", source, licence,
            published_active="36.7B", skips_lookup=True, tokens=14.8e12,
            extra_parameters=58 * 256, note=V3_NOTE,
        )
        for name, date, source, licence in (
            ("DeepSeek-V3", "2024-12", "DeepSeek-V3 2024, §4.2; README_WEIGHTS.md", "DeepSeek"),
            ("DeepSeek-R1", "2025-01", "model card deepseek-ai/DeepSeek-R1, §3", OPEN),
        )
    ),
    Entry(
        "Phi-3.5-MoE", "Microsoft", "2024-08",
        llama(
            (4096, 32, 32, 6400, 8), 32_064, 131_072, norm="layer", norm_bias=True, qkv_bias=True,
            moe=MoE(16, 2, 6400),
        ),
        "41,873,153,344", "released weights microsoft/Phi-3.5-MoE-instruct", OPEN,
        published_active="6.6B", tokens=4.9e12, extra_parameters=32 * 4096 + 32_064,
        note="Extra: biases after the attention's output matrix, C a layer, and the output, V.",
    ),
    Entry(
        "Hunyuan-Large", "Tencent", "2024-11",
        llama(
            (6400, 64, 80, 18304, 8), 128_512, 262_144, qk_norm="head", tie_embeddings=True,
            moe=MoE(16, 1, 18304, d_shared=18304),
        ),
        "389B", "Sun et al. 2024, Hunyuan-Large, Table 1", "Tencent Hunyuan community",
        published_active="52B", tokens=7e12, extra_parameters=-32 * 2 * 6400 * 640,
        layers_per_cache=2,
        note="Every second layer takes keys and values from the one before, so 32 layers have no "
        "key and value matrices, C × 640 each. The printed 52B is met if the tied embedding "
        "counts twice.",
    ),
]  # fmt: skip
