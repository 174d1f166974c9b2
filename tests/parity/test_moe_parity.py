"""One MoE layer gives the outputs, choices and gradients of the blocks of `transformers`.

All parameters and buffers are random, and the balance biases negative: a masked group at 0 instead
of −∞ would then win. Sizes are aligned in one case, so that the grouped kernel runs, and odd in
the other, so that the slices do.
"""

import pytest
import torch
from torch import nn
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig, Qwen2MoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from minillm.model.config import MoE, llama_config
from minillm.model.moe import MoELayer, balance_loss

SIZES = {"kernel": (16, 12), "slices": (18, 7)}  # d_model, d_expert


def mixtral(d, width):
    config = MixtralConfig(
        hidden_size=d, intermediate_size=width, num_local_experts=6, num_experts_per_tok=2
    )
    return MixtralSparseMoeBlock(config), MoE(6, 2, width)


def qwen2(d, width, renormalize):
    config = Qwen2MoeConfig(
        hidden_size=d, moe_intermediate_size=width, shared_expert_intermediate_size=9,
        num_experts=6, num_experts_per_tok=3, norm_topk_prob=renormalize,
    )  # fmt: skip
    moe = MoE(6, 3, width, d_shared=9, shared_gate=True, renormalize=renormalize)
    return Qwen2MoeSparseMoeBlock(config), moe


def deepseek2(d, width, method):
    config = DeepseekV2Config(
        hidden_size=d, moe_intermediate_size=width, n_routed_experts=8, num_experts_per_tok=3,
        n_shared_experts=2, routed_scaling_factor=1.7, topk_method=method, n_group=4, topk_group=2,
        num_attention_heads=2,
    )  # fmt: skip
    groups = {} if method == "greedy" else {"n_groups": 4, "n_active_groups": 2}
    moe = MoE(8, 3, width, d_shared=2 * width, renormalize=False, scale=1.7, **groups)
    return DeepseekV2Moe(config), moe


def deepseek3(d, width, renormalize):
    config = DeepseekV3Config(
        hidden_size=d, moe_intermediate_size=width, n_routed_experts=12, num_experts_per_tok=4,
        n_shared_experts=1, routed_scaling_factor=2.5, n_group=4, topk_group=2,
        norm_topk_prob=renormalize,
    )  # fmt: skip
    moe = MoE(
        12, 4, width, d_shared=width, scores="sigmoid", renormalize=renormalize, scale=2.5,
        n_groups=4, n_active_groups=2, balance_bias=True,
    )  # fmt: skip
    return DeepseekV3MoE(config), moe


BLOCKS = {
    "mixtral": mixtral,
    "qwen2_moe": lambda d, width: qwen2(d, width, False),
    "qwen2_moe_renormalised": lambda d, width: qwen2(d, width, True),
    "deepseek_v2": lambda d, width: deepseek2(d, width, "greedy"),
    "deepseek_v2_groups": lambda d, width: deepseek2(d, width, "group_limited_greedy"),
    "deepseek_v3": lambda d, width: deepseek3(d, width, True),
    "deepseek_v3_as_scored": lambda d, width: deepseek3(d, width, False),
}


def randomise(block: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4 + 0.05)
        for name, buffer in block.named_buffers():
            assert name.endswith("e_score_correction_bias")
            buffer.copy_(-1 - torch.rand(buffer.shape, generator=generator))


def ours_from(theirs: nn.Module, moe: MoE, d: int) -> tuple[MoELayer, dict[str, str]]:
    """Our layer with their weights, and which of their parameters each of ours is."""
    layer = MoELayer(llama_config(7, d_model=d, n_heads=2, head_dim=8, moe=moe))
    shared = "shared_expert" if hasattr(theirs, "shared_expert") else "shared_experts"
    names = {
        "router.weight": "gate.weight",
        "router_bias": "gate.e_score_correction_bias",
        "experts.gate_up": "experts.gate_up_proj",
        "experts.down": "experts.down_proj",
        "shared.down.weight": f"{shared}.down_proj.weight",
        "shared_gate.weight": "shared_expert_gate.weight",
    }
    weights = dict(theirs.state_dict())
    halves = [weights.get(f"{shared}.{part}_proj.weight") for part in ("gate", "up")]
    ours = {name: weights[theirs_] for name, theirs_ in names.items() if theirs_ in weights}
    if halves[0] is not None:
        ours["shared.gate_up.weight"] = torch.cat(halves)
    layer.load_state_dict(ours)
    return layer, {k: v for k, v in names.items() if k in dict(layer.named_parameters())}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BLOCKS)
def test_outputs_choices_and_gradients(name, size):
    d, width = SIZES[size]
    theirs, moe = BLOCKS[name](d, width)
    theirs.eval()
    randomise(theirs)
    layer, names = ours_from(theirs, moe, d)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 11, d, generator=generator)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    out, reference = layer(xs[0]), theirs(xs[1])
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)

    logits, their_weights, their_chosen = theirs.gate(x.flatten(0, 1))
    by_expert, their_by_expert = layer.routing.chosen.argsort(-1), their_chosen.argsort(-1)
    assert torch.equal(
        layer.routing.chosen.gather(-1, by_expert), their_chosen.gather(-1, their_by_expert)
    )
    torch.testing.assert_close(layer.routing.logits, logits)
    torch.testing.assert_close(
        layer.routing.weights.gather(-1, by_expert), their_weights.gather(-1, their_by_expert)
    )

    upstream = torch.randn(out.shape, generator=generator)
    out.backward(upstream)
    reference.backward(upstream)
    torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-4, atol=1e-5)
    ours_grads, their_grads = dict(layer.named_parameters()), dict(theirs.named_parameters())
    for ours, their in names.items():
        torch.testing.assert_close(
            ours_grads[ours].grad, their_grads[their].grad, rtol=1e-4, atol=1e-5, msg=ours
        )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balance_loss_is_that_of_transformers(k):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 5, generator=generator, requires_grad=True)
    theirs = load_balancing_loss_func((logits,), num_experts=5, top_k=k)
    probabilities = logits.softmax(-1)
    ours = balance_loss(probabilities, probabilities.topk(k, dim=-1).indices, 5)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)
