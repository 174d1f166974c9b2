"""The orders of norm, attention and MLP, each against its formula; gated MLPs and norms."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised

from minillm.model.blocks import make_block
from minillm.model.config import ModelConfig, llama_config
from minillm.model.layers import GatedMLP, RMSNorm, make_mlp, make_norm
from minillm.model.masks import View
from minillm.model.transformer import Transformer

CONFIG = ModelConfig(31, d_model=12, n_layers=2, n_heads=3, norm_eps=0.1)


def random_weights(module):
    return randomised(module, seed=0, mean=0.1)


def random_stream() -> torch.Tensor:
    return 2 * torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1)) + 1


# x, and the block's parts: n1, n2 norms of what is read, m1, m2 of what is written, a, f.
FORMULAS = {
    ("pre", "sequential"): lambda x, p: (y := x + p.a(p.n1(x))) + p.f(p.n2(y)),
    ("post", "sequential"): lambda x, p: p.n2((y := p.n1(x + p.a(x))) + p.f(y)),
    ("sandwich", "sequential"): lambda x, p: (
        (y := x + p.m1(p.a(p.n1(x)))) + p.m2(p.f(p.n2(y)))
    ),
    ("output", "sequential"): lambda x, p: (y := x + p.m1(p.a(x))) + p.m2(p.f(y)),
    ("pre", "parallel"): lambda x, p: x + p.a(p.n1(x)) + p.f(p.n2(x)),
    ("pre", "parallel_one_norm"): lambda x, p: x + p.a(p.n1(x)) + p.f(p.n1(x)),
}  # fmt: skip


class Parts:
    """A block's parts by short names."""

    def __init__(self, block):
        self.n1, self.n2 = (getattr(block, f"{n}_norm", None) for n in ("attention", "mlp"))
        self.m1, self.m2 = (getattr(block, f"{n}_out_norm", None) for n in ("attention", "mlp"))
        self.a, self.f = (lambda x: block.attention(x, View())), block.mlp


@pytest.mark.parametrize("norm_place, residual", FORMULAS)
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_block_is_its_formula(norm_place, residual, norm):
    config = replace(CONFIG, norm_place=norm_place, residual=residual, norm=norm)
    block, x = random_weights(make_block(config, 0)), random_stream()
    expected = FORMULAS[norm_place, residual](x, Parts(block))
    torch.testing.assert_close(block(x, View()), expected)
    others = [f for place, f in FORMULAS.items() if place != (norm_place, residual)]
    for formula in others:
        try:
            wrong = formula(x, Parts(block))
        except TypeError:  # this block has no such norm
            continue
        assert not torch.allclose(wrong, expected, atol=1e-2)


def test_post_norm_models_end_without_a_further_norm():
    names = dict(Transformer(replace(CONFIG, norm_place="post")).named_parameters())
    assert not [name for name in names if name.startswith("norm.")]
    assert "norm.weight" in dict(Transformer(CONFIG).named_parameters())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"residual": "parallel", "norm_place": "post"}, "needs norm_place='pre', not 'post'"),
        ({"cross_attention": True, "residual": "parallel"}, "cross_attention needs"),
        ({"norm_place": "between"}, "norm_place='between': expected one of"),
        ({"mlp": "glu"}, "mlp='glu': expected one of"),
        ({"qk_norm": "heads"}, "qk_norm='heads': expected one of"),
        ({"window": 0}, "window=0: expected a positive number"),
        ({"attention_softcap": -1.0}, "attention_softcap=-1.0"),
    ],
)
def test_what_a_configuration_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "mlp, bend",
    [
        ("gelu", F.gelu),
        ("gelu_tanh", lambda z: F.gelu(z, approximate="tanh")),
        ("relu", F.relu),
        ("swiglu", F.silu),
        ("geglu", F.gelu),
        ("geglu_tanh", lambda z: F.gelu(z, approximate="tanh")),
    ],
)
def test_an_mlp_is_its_formula(mlp, bend):
    config, x = replace(CONFIG, mlp=mlp, d_ff=10), random_stream()
    module = random_weights(make_mlp(config))
    if isinstance(module, GatedMLP):
        gate, up = (
            F.linear(x, w, b)
            for w, b in zip(
                module.gate_up.weight.split(10), module.gate_up.bias.split(10), strict=True
            )
        )
        inner = bend(gate) * up
    else:
        inner = bend(module.up(x))
    expected = module.down(inner)
    torch.testing.assert_close(module(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected)
    weights = list(module.parameters())
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad(module(x), weights, gradient)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, weights, gradient))
    assert make_mlp(config, width=7).down.in_features == 7


def test_rms_norm_divides_by_the_root_mean_square_under_which_eps_stands():
    norm = make_norm(replace(CONFIG, norm="rms"), width=4)
    x = torch.tensor([3.0, -1.0, 1.0, 5.0])  # mean square 9
    torch.testing.assert_close(norm(x), x / 9.1**0.5)
    assert not hasattr(norm, "bias") or norm.bias is None
    assert make_norm(replace(CONFIG, norm_bias=False)).bias is None
    assert make_norm(CONFIG, width=5).normalized_shape == (5,)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 4, 64), (1, 1)])
def test_rms_norm_and_its_gradients_equal_those_of_torch(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator).transpose(0, 1).requires_grad_()
    gradient = torch.randn(x.shape, generator=generator)
    norm = RMSNorm(x.shape[-1], eps=0.1)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        without_gradients = norm(x)
    exact = F.rms_norm(x.double(), x.shape[-1:], norm.weight.double(), 0.1)
    torch.testing.assert_close(norm(x), exact.float())
    torch.testing.assert_close(without_gradients, exact.float())
    ours = torch.autograd.grad(norm(x), (x, norm.weight), gradient)
    theirs = torch.autograd.grad(exact, (x, norm.weight), gradient.double())
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    norm.weight.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(norm(x), x, gradient)[0], ours[0])
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_gated_mlp_is_by_default_as_large_as_a_plain_one():
    plain, gated = ModelConfig(9, d_model=768, n_heads=12), llama_config(9, d_model=768, n_heads=12)
    assert 2 * plain.d_ff == 3 * gated.d_ff


def test_qk_norm_makes_scores_independent_of_the_size_of_the_weights():
    for kind in ("head", "all"):
        config = replace(CONFIG, qk_norm=kind, norm="rms", norm_eps=1e-6, bias=False)
        config = replace(config, qkv_bias=False, norm_bias=False)
        attention, x = random_weights(make_block(config, 0).attention), random_stream()
        with torch.no_grad():
            before = attention(x, View())
            attention.qkv.weight[:24] *= 50  # queries and keys
            torch.testing.assert_close(attention(x, View()), before, atol=1e-4, rtol=1e-4)
