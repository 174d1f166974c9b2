"""Weights in 8 or 4 bits: nothing but their rounding changes the result, for one row or many."""

import pytest
import torch
from helpers import randomised
from torch import nn

from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.infer.weight_only import FEW, GROUP, WeightOnlyLinear, weight_only
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer

SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_length": 40}


def random_layer(n_inputs: int, n_outputs: int, bias: bool = True) -> nn.Linear:
    layer, generator = nn.Linear(n_inputs, n_outputs, bias), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer


def rounded_by_hand(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Each column in groups of 96 outputs, on an even grid from its minimum to its maximum."""
    pad = -len(weight) % GROUP
    groups = nn.functional.pad(weight, (0, 0, 0, pad)).reshape(-1, GROUP, weight.shape[1])
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    if bits == 4:  # this kernel keeps minimum and step in half precision
        low = low.half().float()
    step = (high - low) / (2**bits - 1)
    if bits == 4:
        step = step.half().float()
    codes = ((groups - low) / step).round().clamp(0, 2**bits - 1)
    return (codes * step + low).flatten(0, 1)[: len(weight)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(7, 96), (30, 200), (5, 3), (96, 97)])
def test_weights_are_rounded_to_the_even_grid_of_their_group(bits, shape):
    layer = random_layer(*shape)
    small = WeightOnlyLinear(layer, bits)
    expected = rounded_by_hand(layer.weight.detach(), bits)
    step = (expected.max() - expected.min()) / (2**bits - 1)
    off = (small.weight - expected).abs()
    assert off.max() <= 1.01 * step  # a tie may fall to the other side
    assert (off < 1e-3 * step).float().mean() > 0.97
    n_groups = -(-shape[1] // GROUP)
    per_row = GROUP + 8 if bits == 8 else GROUP // 2 + 4
    assert small.table.nbytes == shape[0] * n_groups * per_row


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (3, 2), (FEW,), (FEW + 1,), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_with_the_rounded_weights(bits, rows, bias):
    small = WeightOnlyLinear(random_layer(30, 200, bias), bits)
    x = torch.randn(*rows, 30, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.linear(x, small.weight, small.bias)
    torch.testing.assert_close(small(x), expected, atol=1e-4, rtol=1e-4)
    # A view whose numbers do not lie side by side.
    twice = torch.stack((x, 0 * x), dim=-1)[..., 0]
    torch.testing.assert_close(small(twice), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_many_rows_meet_the_weights_part_by_part(bits, monkeypatch):
    monkeypatch.setattr("minillm.infer.weight_only.AT_ONCE", 2 * GROUP * 30)
    small = WeightOnlyLinear(random_layer(30, 5 * GROUP - 7), bits)  # two groups, two and one
    x = torch.randn(3, FEW, 30, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.linear(x, small.weight, small.bias)
    torch.testing.assert_close(small(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [gpt2_config(19, **SIZE), llama_config(19, **SIZE)])
def test_a_weight_only_model_computes_what_its_rounded_weights_say(config):
    model = randomised(Transformer(config))
    small = weight_only(model)
    assert isinstance(model.blocks[0].attention.qkv, nn.Linear)
    assert small.embedding.weight is model.embedding.weight
    rounded = Transformer(config)
    rounded.load_state_dict(model.state_dict())
    rounded.unembed.weight = nn.Parameter(torch.empty(0))  # no longer that of the embedding
    with torch.no_grad():
        for name, layer in small.named_modules():
            if isinstance(layer, WeightOnlyLinear):
                rounded.get_submodule(name).weight = nn.Parameter(layer.weight)
    for prompts in ([[1, 2]], [[1, 2], [3], [4, 5, 6]]):
        settings = {"max_new_tokens": 12, "sampler": Sampler(temperature=0)}
        assert generate(small, prompts, **settings) == generate(rounded, prompts, **settings)


def test_what_is_refused():
    with pytest.raises(ValueError, match="bits=3"):
        weight_only(Transformer(gpt2_config(19, **SIZE)), bits=3)
    with torch.device("meta"):
        elsewhere = Transformer(gpt2_config(19, **SIZE))
    with pytest.raises(ValueError, match="the model is on meta"):
        weight_only(elsewhere)
