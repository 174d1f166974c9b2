"""Latent attention gives the outputs and gradients of `transformers` for DeepSeek-V2 and V3.

One layer alone, every weight randomised, ragged rows; whole models are compared with the families.
"""

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2Attention,
    DeepseekV2RotaryEmbedding,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from minillm.model.config import Latent, ModelConfig, Rope
from minillm.model.latent import LatentAttention
from minillm.model.masks import View
from minillm.model.positions import rope_angles

B, T, C, H = 3, 11, 30, 3
ROPE = Rope(base=100.0, pairs="interleaved")
LENGTHS = torch.tensor([11, 4, 7])
CLASSES = {
    2: (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding),
    3: (DeepseekV3Config, DeepseekV3Attention, DeepseekV3RotaryEmbedding),
}
THEIR_NAMES = {
    "q.weight": "q_proj.weight", "q_down.weight": "q_a_proj.weight",
    "q_norm.weight": "q_a_layernorm.weight", "q_up.weight": "q_b_proj.weight",
    "kv_down.weight": "kv_a_proj_with_mqa.weight", "kv_norm.weight": "kv_a_layernorm.weight",
    "kv_up.weight": "kv_b_proj.weight", "out.weight": "o_proj.weight",
    "q_down.bias": "q_a_proj.bias", "kv_down.bias": "kv_a_proj_with_mqa.bias",
    "out.bias": "o_proj.bias",
}  # fmt: skip


def build_theirs(version: int, q_rank: int | None, bias: bool):
    config_class, attention_class, rotary_class = CLASSES[version]
    config = config_class(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=H, q_lora_rank=q_rank,
        kv_lora_rank=14, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=10, vocab_size=20,
        max_position_embeddings=32, attention_bias=bias, attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        attn_implementation="eager",
    )  # fmt: skip
    return attention_class(config, 0).eval(), rotary_class(config)


def build_ours(q_rank: int | None, bias: bool) -> LatentAttention:
    config = ModelConfig(
        20, d_model=C, n_heads=H, head_dim=8, position="rope", norm="rms", norm_eps=1e-6,
        rope=ROPE, bias=False, qkv_bias=bias,
        latent=Latent(14, 6, q_rank, value_dim=10),
    )  # fmt: skip
    attention = LatentAttention(config, 0)
    if bias:
        attention.out.bias = torch.nn.Parameter(torch.zeros(C))
    return attention


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("q_rank", [None, 12])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_and_its_gradients_equal_transformers(version, q_rank, bias):
    random = torch.Generator().manual_seed(0)
    theirs, rotary = build_theirs(version, q_rank, bias)
    ours = build_ours(q_rank, bias)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.4 + 0.1)
            theirs.get_parameter(THEIR_NAMES[name]).copy_(parameter)
    x = torch.randn(B, T, C, generator=random)
    mask = torch.ones(T, T).tril().bool() & (torch.arange(T) < LENGTHS[:, None])[:, None, None]
    positions = torch.arange(T)
    real = (positions < LENGTHS[:, None])[..., None]

    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    view = View(mask=mask, rotation=rope_angles(positions, 6, ROPE))
    expected, _ = theirs(
        yours, position_embeddings=rotary(yours, positions[None].expand(B, -1)),
        attention_mask=torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(x.dtype).min),
    )  # fmt: skip
    actual = ours(mine, view)
    torch.testing.assert_close(actual[real[..., 0]], expected[real[..., 0]], rtol=1e-4, atol=1e-4)
    weights = torch.linspace(-1, 1, C) * real
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-4)
    for name, parameter in ours.named_parameters():
        theirs_grad = theirs.get_parameter(THEIR_NAMES[name]).grad
        torch.testing.assert_close(parameter.grad, theirs_grad, rtol=1e-4, atol=1e-3)
