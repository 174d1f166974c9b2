"""Mixture of experts: what dispatch, capacity, groups and balance do, on numbers done by hand."""

import copy
import math

import pytest
import torch

from minillm.model.config import MoE, llama_config
from minillm.model.moe import (
    MoELayer,
    balance_loss,
    dispatch,
    grouped_linear,
    route,
    tokens_per_expert,
    update_bias,
    z_loss,
)


def layer_of(moe: MoE, d_model: int = 16, seed: int = 0, **changes) -> MoELayer:
    layer = MoELayer(llama_config(7, d_model=d_model, n_heads=1, moe=moe, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (*layer.parameters(), *layer.buffers()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return layer


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_loop(layer: MoELayer, x: torch.Tensor) -> torch.Tensor:
    """The definition, token by token: each runs the MLPs of its experts and adds them up."""
    rows = []
    flat, (_, chosen, weights) = x.flatten(0, -2), layer.routing
    for row, experts, shares in zip(flat, chosen, weights, strict=True):
        total = torch.zeros_like(row)
        for e, share in zip(experts.tolist(), shares, strict=True):
            if layer.experts.gated:
                gate, up = (layer.experts.gate_up[e] @ row).chunk(2)
                hidden = layer.experts.activation(gate) * up
            else:
                hidden = layer.experts.activation(layer.experts.up[e] @ row)
            total = total + share * (layer.experts.down[e] @ hidden)
        rows.append(total)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("mlp", ["swiglu", "geglu", "gelu", "relu"])
@pytest.mark.parametrize(("d", "width"), [(16, 8), (10, 7)])  # the kernel, and slice by slice
def test_equals_the_loop_over_tokens(mlp, d, width):
    layer = layer_of(MoE(5, 2, width), d_model=d, mlp=mlp)
    x = tokens(3, 7, d)
    torch.testing.assert_close(layer(x), by_loop(layer, x), rtol=1e-4, atol=1e-5)


def test_all_experts_is_the_dense_mixture():
    layer = layer_of(MoE(4, 4, 8, renormalize=False))
    x = tokens(2, 6, 16)
    shares = (x @ layer.router.weight.T).softmax(-1)
    gate, up = torch.einsum("btc,efc->betf", x, layer.experts.gate_up).chunk(2, dim=-1)
    each = torch.einsum("betf,ecf->bect", torch.nn.functional.silu(gate) * up, layer.experts.down)
    torch.testing.assert_close(layer(x), torch.einsum("bte,bect->btc", shares, each))


def test_permuting_tokens_permutes_outputs():
    layer = layer_of(MoE(6, 2, 8, d_shared=4))
    x = tokens(1, 40, 16)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_one_token_and_unused_experts():
    layer = layer_of(MoE(32, 1, 8))
    x = tokens(1, 1, 16).requires_grad_()
    layer(x).sum().backward()
    used = layer.experts.down.grad.flatten(1).norm(dim=1) > 0
    assert used.nonzero().flatten().tolist() == layer.routing.chosen.flatten().tolist()
    torch.testing.assert_close(layer(x), by_loop(layer, x))


def test_dispatch_by_hand():
    chosen = torch.tensor([[2, 0], [0, 1], [2, 1], [2, 0]])
    # First choices 2 0 2 2 are pairs 0–3, second choices 0 1 1 0 are pairs 4–7.
    order, counts = dispatch(chosen, 4)
    assert order.tolist() == [1, 4, 7, 5, 6, 0, 2, 3]
    assert counts.tolist() == [3, 2, 3, 0]
    order, counts = dispatch(chosen, 4, limit=2)
    assert order.tolist() == [1, 4, 5, 6, 0, 2]
    assert counts.tolist() == [2, 2, 2, 0]


def test_capacity_drops_later_tokens_of_a_full_expert():
    layer = layer_of(MoE(2, 1, 8, capacity=1.0, renormalize=False))
    with torch.no_grad():
        layer.router.weight.copy_(torch.zeros(2, 16).index_fill(0, torch.tensor([0]), 1.0))
    x = torch.cat((torch.ones(1, 3, 16), -torch.ones(1, 1, 16)), dim=1)  # experts 0 0 0 1
    out = layer(x)
    # 4 tokens, 2 experts, capacity 1: each takes 2, so the third token passes through empty.
    assert (out.abs().sum(-1) > 0).tolist() == [[True, True, False, True]]
    kept = by_loop(layer, x)
    torch.testing.assert_close(out[0, [0, 1, 3]], kept[0, [0, 1, 3]])


def test_capacity_that_suffices_changes_nothing():
    moe = {"n_experts": 4, "n_active": 2, "d_expert": 8}
    x = tokens(2, 10, 16)
    free, limited = layer_of(MoE(**moe)), layer_of(MoE(**moe, capacity=2.0))
    torch.testing.assert_close(limited(x), free(x), rtol=0, atol=0)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_only_the_best_groups_are_chosen(scores):
    moe = MoE(6, 2, 8, scores=scores, n_groups=3, n_active_groups=1, balance_bias=True)
    # Group 0 holds the best expert, group 1 the best two together.
    logits = torch.tensor([[2.0, -9.0, 1.5, 1.4, -9.0, -9.0]])
    chosen = route(logits, moe, bias=torch.full((6,), -5.0)).chosen[0].tolist()
    assert sorted(chosen) == ([0, 1] if scores == "softmax" else [2, 3])


def test_bias_moves_the_choice_but_not_the_weight():
    moe = MoE(3, 1, 8, scores="sigmoid", renormalize=False, balance_bias=True)
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    assert route(logits, moe).chosen.item() == 0
    routing = route(logits, moe, bias=torch.tensor([0.0, 0.0, 9.0]))
    assert routing.chosen.item() == 2
    assert routing.weights.item() == pytest.approx(1 / (1 + math.e))


def test_update_bias_closes_the_gap():
    layer = layer_of(MoE(4, 1, 8, scores="sigmoid", balance_bias=True))
    layer.router_bias.zero_()
    x = tokens(4, 64, 16)
    layer(x)
    before = tokens_per_expert(layer.routing.chosen, 4)
    expected = 0.01 * (before.float().mean() - before).sign()
    update_bias(layer, 0.01)
    torch.testing.assert_close(layer.router_bias, expected)
    for _ in range(200):
        layer(x)
        update_bias(layer, 0.01)
    after = tokens_per_expert(layer.routing.chosen, 4)
    assert after.float().std() < before.float().std() / 3
    assert layer.router_bias.requires_grad is False


def test_balance_loss_is_k_when_balanced_and_e_when_collapsed():
    chosen = torch.tensor([[0, 1], [2, 3]])
    even = torch.full((2, 4), 0.25)
    assert balance_loss(even, chosen, 4).item() == pytest.approx(2.0)
    onto_one = torch.tensor([[1.0, 0, 0, 0]] * 2)
    assert balance_loss(onto_one, torch.zeros(2, 1).long(), 4).item() == pytest.approx(4.0)


def test_z_loss_by_hand():
    assert z_loss(torch.zeros(3, 4)).item() == pytest.approx(math.log(4) ** 2)
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    assert z_loss(logits).item() == pytest.approx(expected)


def test_active_weights_by_hand():
    layer = layer_of(MoE(8, 2, 6, d_shared=5, shared_gate=True))
    assert layer.active_weights() == 8 * 16 + 2 * (3 * 6 * 16) + 3 * 5 * 16 + 16


def test_grouped_linear_under_autocast_and_in_double():
    x, weight = tokens(9, 16), tokens(3, 8, 16, seed=3)
    counts = torch.tensor([4, 0, 5])
    right = torch.cat((x[:4] @ weight[0].T, x[4:] @ weight[2].T))
    torch.testing.assert_close(grouped_linear(x, weight, counts), right)
    double = grouped_linear(x.double(), weight.double(), counts)
    torch.testing.assert_close(double, right.double(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = grouped_linear(x, weight, counts)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), right, rtol=0.05, atol=0.05)


def test_router_stays_exact_under_autocast():
    layer = layer_of(MoE(6, 2, 8))
    x = tokens(2, 9, 16)
    layer(x)
    chosen, logits = layer.routing.chosen, layer.routing.logits
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert torch.equal(layer.routing.chosen, chosen)
    torch.testing.assert_close(layer.routing.logits, logits, rtol=0, atol=0)


def test_a_layer_can_be_copied_after_a_pass():
    layer = layer_of(MoE(4, 2, 8))
    x = tokens(1, 5, 16)
    out = layer(x)
    twin = copy.deepcopy(layer)
    assert twin.routing is None
    torch.testing.assert_close(twin(x), out)


def test_refuses_bad_input():
    layer = layer_of(MoE(4, 2, 8))
    with pytest.raises(ValueError, match=r"shape \(5, 3\): expected \(N, 4\)"):
        route(torch.zeros(5, 3), layer.moe)
    with pytest.raises(ValueError, match="balance_bias=True"):
        update_bias(layer, 0.1)
    biased = layer_of(MoE(4, 2, 8, balance_bias=True))
    with pytest.raises(ValueError, match="run a forward pass"):
        update_bias(biased, 0.1)
    with pytest.raises(ValueError, match=r"expected \(N, 3\) and \(N, k\)"):
        balance_loss(torch.zeros(5, 4), torch.zeros(5, 2).long(), 3)
