"""The configurations of well-known models, as the hub has them, are read for what they are.

Files of the hub use older keys than `transformers` writes today, and constants no tiny model has.
The published number of weights is an outside truth for the whole of a configuration.
"""

import dataclasses

import pytest
import torch

from minillm.model import hf
from minillm.model.config import Rope, RopeScaling
from minillm.model.families import FAMILIES
from minillm.model.families.common import Fields
from minillm.model.transformer import Transformer, own_tensors


def sizes(model_type, vocabulary, width, mlp, layers, heads, kv_heads, longest, **others):
    """The fields that nearly all of them share."""
    tied = {} if model_type.startswith("gemma") else {"tie_word_embeddings": False}
    return {
        "model_type": model_type, "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": longest,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, **tied, **others,
    }  # fmt: skip


TIED = {"tie_word_embeddings": True}
NO_WINDOW = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21}
GEMMA = {"head_dim": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-6}  # says nothing of tying
GLM = {"head_dim": 128, "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "attention_bias": True}
YARN = {
    "type": "yarn", "beta_fast": 32, "beta_slow": 1, "factor": 40,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
DEEPSEEK = {
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "attention_bias": False, "moe_layer_freq": 1,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
LLAMA_3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# Name: (number of weights, config.json)
PUBLISHED = {
    "GPT-1": (116534784, {
        "model_type": "openai-gpt", "vocab_size": 40478, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "n_positions": 512, "n_ctx": 512, "layer_norm_epsilon": 1e-5, "afn": "gelu",
    }),
    "Llama-3.1-8B": (8030261248, sizes(
        "llama", 128256, 4096, 14336, 32, 32, 8, 131072, rope_theta=5e5, rope_scaling=LLAMA_3,
        attention_bias=False, mlp_bias=False, pretraining_tp=1,
    )),
    "Mistral-7B-v0.1": (7241732096, sizes(
        "mistral", 32000, 4096, 14336, 32, 32, 8, 32768, sliding_window=4096, rope_theta=10000.0
    )),
    "Qwen2.5-0.5B": (494032768, sizes(
        "qwen2", 151936, 896, 4864, 24, 14, 2, 32768, rope_theta=1e6, **NO_WINDOW, **TIED
    )),
    "Qwen3-0.6B": (596049920, sizes(
        "qwen3", 151936, 1024, 3072, 28, 16, 8, 40960, head_dim=128, rope_theta=1e6,
        rope_scaling=None, attention_bias=False, **NO_WINDOW, **TIED,
    )),
    "Phi-3-mini-4k": (3821079552, sizes(
        "phi3", 32064, 3072, 8192, 32, 32, 32, 4096, original_max_position_embeddings=4096,
        rope_scaling=None, rope_theta=10000.0, sliding_window=2047, attention_bias=False,
    )),
    "Phi-4-mini": (3836021760, sizes(
        "phi3", 200064, 3072, 8192, 32, 24, 8, 131072, original_max_position_embeddings=4096,
        partial_rotary_factor=0.75, rope_theta=10000.0, sliding_window=262144, **TIED,
        rope_scaling={"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
    )),
    "gemma-2b": (2506172416, sizes(
        "gemma", 256000, 2048, 16384, 18, 8, 1, 8192, **GEMMA | {"hidden_act": "gelu"}
    )),
    "gemma-2-9b": (9241705984, sizes(
        "gemma2", 256000, 3584, 14336, 42, 16, 8, 8192, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, query_pre_attn_scalar=256, sliding_window=4096,
        **GEMMA | {"hidden_act": "gelu_pytorch_tanh"},
    )),
    "stablelm-2-1_6b": (1644515328, sizes(
        "stablelm", 100352, 2048, 5632, 24, 32, 32, 4096, use_qkv_bias=True, layer_norm_eps=1e-5,
        partial_rotary_factor=0.25, qk_layernorm=False, use_parallel_residual=False,
    )),
    "glm-4-9b": (9399951360, sizes("glm", 151552, 4096, 13696, 40, 32, 2, 131072, **GLM)),
    "GLM-4-9B-0414": (9400279040, sizes("glm4", 151552, 4096, 13696, 40, 32, 2, 32768, **GLM)),
    "OLMo-2-1124-7B": (7298617344, sizes(
        "olmo2", 100352, 4096, 11008, 32, 32, 32, 4096, rope_theta=5e5, attention_bias=False
    )),
    "SmolLM3-3B": (3075098624, sizes(
        "smollm3", 128256, 2048, 11008, 36, 16, 4, 65536, rope_theta=5e6, sliding_window=None,
        use_sliding_window=False, no_rope_layers=[1, 1, 1, 0] * 9, **TIED,
    )),
    "Mixtral-8x7B": (46702792704, sizes(
        "mixtral", 32000, 4096, 14336, 32, 32, 8, 32768, num_local_experts=8,
        num_experts_per_tok=2, rope_theta=1e6, sliding_window=None,
    )),
    "Qwen1.5-MoE-A2.7B": (14315784192, sizes(
        "qwen2_moe", 151936, 2048, 5632, 24, 16, 16, 8192, num_experts=60, num_experts_per_tok=4,
        moe_intermediate_size=1408, shared_expert_intermediate_size=5632, norm_topk_prob=False,
        decoder_sparse_step=1, rope_theta=1e6, **NO_WINDOW,
    )),
    "Qwen3-30B-A3B": (30532122624, sizes(
        "qwen3_moe", 151936, 2048, 6144, 48, 32, 4, 40960, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[], rope_theta=1e6, **NO_WINDOW,
    )),
    "DeepSeek-V2-Lite": (15706484224, sizes(
        "deepseek_v2", 102400, 2048, 10944, 27, 16, 16, 163840, n_routed_experts=64,
        n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=1408, q_lora_rank=None,
        n_group=1, topk_group=1, topk_method="greedy", scoring_func="softmax",
        norm_topk_prob=False, routed_scaling_factor=1.0, first_k_dense_replace=1,
        rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, **DEEPSEEK,
    )),
    "DeepSeek-V3": (671026419200, sizes(
        "deepseek_v3", 129280, 7168, 18432, 61, 128, 128, 163840, n_routed_experts=256,
        n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=2048, q_lora_rank=1536,
        n_group=8, topk_group=4, topk_method="noaux_tc", scoring_func="sigmoid",
        norm_topk_prob=True, routed_scaling_factor=2.5, first_k_dense_replace=3,
        rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, **DEEPSEEK,
        num_nextn_predict_layers=1,
    )),
}  # fmt: skip


def config_of(name, **changes):
    published = PUBLISHED[name][1] | changes
    return FAMILIES[published["model_type"]].read(Fields(published))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_is_counted(name):
    with torch.device("meta"):
        model = Transformer(config_of(name))
    assert sum(t.numel() for t in own_tensors(model).values()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_we_would_write_is_the_same_model(name):
    config, family = config_of(name), PUBLISHED[name][1]["model_type"]
    back = FAMILIES[family].read(Fields(hf.published_config(config, family)))
    assert back.attention_scale == pytest.approx(config.attention_scale)
    assert dataclasses.replace(back, attention_scale=config.attention_scale) == config


def test_rotations_are_slowed_as_published():
    """Worked out by hand from the papers' formulas and the numbers in the files."""
    assert config_of("Llama-3.1-8B").rope.scaling == RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
    # sqrt(1 + ln(131072 / 4096) / ln(4096)) and the long factors, because 131072 > 4096.
    long = config_of("Phi-4-mini").rope.scaling
    assert long.attention_factor == pytest.approx(1.1902380714)
    assert long.factors == (2.0,) * 48
    short = config_of("Phi-4-mini", max_position_embeddings=4096).rope.scaling
    assert short.attention_factor == 1 and short.factors == (1.0,) * 48
    # Both mscales are equal, so the rotation keeps its size: the scores take all of it, squared.
    v3 = config_of("DeepSeek-V3")
    assert v3.rope.scaling.attention_factor == 1
    assert v3.attention_scale == pytest.approx(192**-0.5 * 1.3688879454**2)  # 0.1 ln 40 + 1
    # Without them YaRN's own factor is on the rotation.
    plain = config_of("Llama-3.1-8B", rope_scaling=YARN)
    assert plain.rope.scaling.attention_factor == pytest.approx(1.3688879454)
    assert plain.attention_scale is None


def test_windows_begin_where_each_family_says():
    assert config_of("Mistral-7B-v0.1").window == 4096
    assert config_of("gemma-2-9b").global_layers == tuple(range(1, 42, 2))
    assert config_of("Qwen2.5-0.5B").window is None
    qwen = config_of("Qwen2.5-0.5B", use_sliding_window=True)
    assert qwen.window == 32768 and qwen.global_layers == tuple(range(21))
    assert config_of("SmolLM3-3B").rope.skip_layers == tuple(range(3, 36, 4))


def without(name, *fields):
    """The configuration of an older file, which does not say what its family takes for granted."""
    published = Fields(PUBLISHED[name][1])
    for field in fields:
        del published[field]
    return FAMILIES[published["model_type"]].read(published)


def test_what_older_files_take_for_granted():
    assert without("Mistral-7B-v0.1", "sliding_window").window == 4096
    assert without("stablelm-2-1_6b", "partial_rotary_factor").rope.fraction == 0.25
    glm = without("glm-4-9b", "partial_rotary_factor", "head_dim", "attention_bias")
    assert (glm.rope.fraction, glm.head_dim, glm.qkv_bias) == (0.5, 128, True)
    assert without("Mixtral-8x7B", "rope_theta").rope.base == 1e6
    assert without("SmolLM3-3B", "rope_theta", "no_rope_layers").rope == Rope(
        2e6, skip_layers=tuple(range(3, 36, 4))
    )
    assert without("Llama-3.1-8B", "num_key_value_heads").n_kv_heads == 32
    assert without("Qwen3-0.6B", "head_dim").head_dim == 128
    assert without("gemma-2b", "head_dim", "rope_theta").head_dim == 256
    assert without("Qwen1.5-MoE-A2.7B", "norm_topk_prob").moe.renormalize is False
    assert without("DeepSeek-V3", "norm_topk_prob").moe.renormalize is True
