"""Quantisation: published levels, exact bytes, and errors no larger than half a step."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.adapt.lora import LoRA, add_lora
from minillm.adapt.lora_files import load_adapters, save_adapters
from minillm.adapt.quant import (
    Format,
    RoundedScales,
    dequantize,
    fp4_levels,
    levels,
    nf4_levels,
    pack,
    quantize,
    scale_values,
    unpack,
)
from minillm.adapt.quant_linear import QuantLinear
from minillm.adapt.quant_model import (
    dequantize_linears,
    packed_gguf,
    quantize_linears,
    stored_bytes,
)
from minillm.adapt.wrap import merge, trainable, wrapped_layers
from minillm.data import assets
from minillm.model import hf
from minillm.model.config import llama_config
from minillm.model.gguf import GGUF
from minillm.model.transformer import Transformer

# Dettmers et al. 2023, appendix E.
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
FORMATS = [
    Format("absmax", 8, None),
    Format("absmax", 8, 0),
    Format("absmax", 3, 6),
    Format("affine", 4, 12),
    Format("affine", 8, 0),
    Format("nf4", 4, 6),
    Format("nf4", 4, 6, double=True),
    Format("affine", 4, 6, double=True),
    Format("fp4", 4, 12),
]


def matrix(n_rows, n_columns, seed=0, shift=0.3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, n_columns, generator=generator) * 0.1 + shift


def test_nf4_levels_are_the_published_ones():
    torch.testing.assert_close(nf4_levels(), torch.tensor(PUBLISHED_NF4), rtol=0, atol=1e-6)


def test_fp4_levels_are_all_numbers_of_its_bits():
    """Sign, two bits of exponent (bias 1), one of mantissa: ±{0, ½} and ±2^(e−1)·(1 + m/2)."""
    positive = [0.0, 0.5] + [2.0 ** (e - 1) * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1)]
    expected = torch.tensor(positive + [-x for x in positive]) / max(positive)
    torch.testing.assert_close(fp4_levels(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_number_becomes_the_nearest_level(format):
    """Against brute force over all levels of its group."""
    weight = matrix(5, 12)
    quantized = quantize(weight, format)
    n = 60 if format.group is None else format.group or 12
    scales = scale_values(quantized.scales).flatten()
    offsets = torch.zeros_like(scales)
    if quantized.offsets is not None:
        offsets = scale_values(quantized.offsets).flatten()
    for i, group in enumerate(weight.reshape(-1, n)):
        grid = levels(format) * scales[i] + offsets[i]
        nearest = (group[:, None] - grid).abs().min(dim=1).values
        reached = (dequantize(quantized).reshape(-1, n)[i] - group).abs()
        torch.testing.assert_close(reached, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_quantising_twice_changes_nothing_more(format):
    once = dequantize(quantize(matrix(4, 12), format))
    if not format.double:
        torch.testing.assert_close(dequantize(quantize(once, format)), once, rtol=1e-5, atol=1e-6)


def test_evenly_spaced_grids_agree_with_torch():
    weight = matrix(5, 12)
    ours = dequantize(quantize(weight, Format("absmax", 8, 0)))
    scales = weight.abs().amax(1) / 127
    zeros = torch.zeros(5, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -128, 127)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_stored_bytes_equal_theory(format):
    """256 rows of 192 columns: whole groups of 256 scales, so that nothing is padded."""
    quantized = quantize(matrix(256, 192), format)
    numbers = 256 * 192 if format.group is None else format.group or 192
    n_scales = 256 * 192 // numbers
    code_bytes = 256 * 192 * (0.5 if format.bits <= 4 else 1)
    scale_bytes = n_scales * (1 + 4 / 256) + 4 if format.double else n_scales * 4
    n_kinds = 2 if format.kind == "affine" else 1
    assert quantized.nbytes == code_bytes + n_kinds * scale_bytes
    bits = format.bits_per_weight(192, 256) * 256 * 192
    assert abs(8 * quantized.nbytes - bits) <= 8 * 4 * n_kinds  # the means


def test_double_quantization_saves_three_eighths_of_a_bit():
    """Groups of 64: 32/64 = 0.5 bits for plain scales, (8 + 32/256)/64 = 0.127 for rounded."""
    plain, double = (Format("nf4", 4, 64, double=x).bits_per_weight(256) for x in (False, True))
    assert plain - double == pytest.approx(0.373, abs=0.001)


def test_double_quantization_rounds_the_distance_from_the_mean():
    """Scales are all positive: rounded around zero, half of the codes would be wasted."""
    scales = 1 + 0.01 * torch.rand(3, 100, generator=torch.Generator().manual_seed(0))
    off = (RoundedScales.of(scales).values() - scales).abs().max()
    assert off <= 0.51 * (scales - scales.mean()).abs().max() / 127  # half a step


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), min_size=2, max_size=40))
def test_packing_loses_nothing(numbers):
    codes = torch.tensor([numbers[: len(numbers) // 2 * 2]], dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes)), codes)
    assert pack(codes).nbytes * 2 == codes.nbytes


def test_a_group_of_zeros_stays_zero():
    weight = torch.zeros(2, 8)
    for format in FORMATS:
        if 8 % (format.group or 1) == 0:
            rounded = quantize(weight, format)
            assert torch.equal(dequantize(rounded), weight)
            codes = unpack(rounded.codes) if format.bits <= 4 else rounded.codes
            assert levels(format)[codes.int()].abs().max() == 0  # no code of what is no number


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_quantised_layer_equals_its_dequantised_weight(format):
    layer = torch.nn.Linear(12, 5)
    quant = QuantLinear(quantize(layer.weight, format), layer.bias)
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = torch.nn.functional.linear(x, quant.weight, layer.bias)
    torch.testing.assert_close(quant(x), expected)
    (gradient,) = torch.autograd.grad(quant(x).square().sum(), x)
    (reference,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(gradient, reference)


def test_backward_does_not_keep_the_unpacked_weight():
    """What autograd saves for later must not include the (5, 12) matrix."""
    quant = QuantLinear(quantize(matrix(5, 12), Format("nf4", 4, 6)))
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: shapes.append(t.shape) or t, lambda t: t
    ):
        quant(torch.randn(3, 12, requires_grad=True))
    assert (5, 12) not in shapes


def test_a_model_can_be_quantised_by_name_and_runs():
    config = llama_config(31, d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=20)
    model = Transformer(config)
    tokens = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    quantize_linears(model, Format("absmax", 8, 0), ("attention.qkv", "mlp.down"))
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds.count("QuantLinear") == 4
    error = (model(tokens) - before).abs().max() / before.abs().max()
    assert 0 < error < 0.05


def test_adapters_learn_on_a_quantised_base():
    """QLoRA: gradients as through the dequantised weight, and only the adapters move."""
    config = llama_config(31, d_model=12, n_layers=1, n_heads=3, d_ff=20)
    tokens = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
    lora = LoRA(rank=2, targets=("attention.q", "mlp.down"))
    gradients = []
    for dequantised in (False, True):
        model = Transformer(config)
        if dequantised:
            for layer in (model.blocks[0].attention.qkv, model.blocks[0].mlp.down):
                layer.weight.data = dequantize(quantize(layer.weight, Format("nf4", 4, 4)))
        else:
            quantize_linears(model, Format("nf4", 4, 4), ("attention.qkv", "mlp.down"))
        adapters = add_lora(model, lora)
        for p in adapters.values():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(4)) * 0.3
        model(tokens).square().mean().backward()
        gradients.append({name: p.grad for name, p in adapters.items()})
        if not dequantised:
            with pytest.raises(ValueError, match="dequantise it first"):
                merge(model)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_smollm2_runs_on_the_codes_of_its_file():
    """Equal logits to the dequantised model, and bytes as the format says."""
    file = GGUF(assets.path("smollm2"))
    plain, packed = hf.from_gguf(file), packed_gguf(file)
    tokens = torch.randint(0, 1000, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(packed(tokens), plain(tokens), rtol=1e-4, atol=1e-4)
    quantised = [m for m in packed.modules() if isinstance(m, QuantLinear)]
    assert len(quantised) == 4 * 30
    n_weights = sum(m.in_features * m.out_features for m in quantised)
    assert sum(m.quantized.nbytes for m in quantised) == n_weights * (4 + 2 * 16 / 32) / 8
    assert stored_bytes(packed) < stored_bytes(plain) / 2.5


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Format("int8"), "kind='int8': expected one of"),
        (lambda: Format("absmax", 1), "bits=1: expected 2 to 8"),
        (lambda: Format("nf4", 8), "and 4 for nf4"),
        (lambda: Format("absmax", 8, -1), "group=-1"),
        (lambda: quantize(matrix(2, 7), Format("absmax", 8, 2)), "7 columns do not divide"),
        (lambda: quantize(torch.zeros(3), Format()), r"shape \(3,\): expected a matrix"),
        (lambda: quantize(torch.full((2, 2), torch.inf), Format()), "finite numbers"),
        (lambda: pack(torch.full((1, 2), 16, dtype=torch.uint8)), "up to 16: expected"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_only_whole_layers_are_quantised():
    model = Transformer(llama_config(31, d_model=12, n_heads=3))
    with pytest.raises(ValueError, match="only whole layers"):
        quantize_linears(model, Format(), ("attention.q",))


@pytest.mark.parametrize("bias", [True, False])
def test_adapters_on_codes_merge_into_what_the_codes_stand_for(bias, tmp_path):
    config = llama_config(50, d_model=32, n_layers=2, n_heads=2, d_ff=64, bias=bias, qkv_bias=bias)
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, generator)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    quantize_linears(model, Format("nf4", 4, 16, double=True), ("attention.qkv", "mlp.down"))
    again = copy.deepcopy(model)
    lora = LoRA(2, targets=("attention.v", "mlp.down", "mlp.up"))
    add_lora(model, lora)
    for weight in trainable(model).values():
        weight.data = torch.randn(weight.shape, generator=generator)
    tokens = torch.randint(50, (3, 7), generator=generator)
    before = model(tokens)
    save_adapters(model, tmp_path / "adapters", "llama", lora)
    load_adapters(again, tmp_path / "adapters", "llama")
    torch.testing.assert_close(again(tokens), before)
    with pytest.raises(ValueError, match="dequantise it first"):
        merge(model)
    dequantize_linears(model)
    torch.testing.assert_close(model(tokens), before)
    merge(model)
    torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-4)


def test_a_partly_quantised_model_merges_all_adapters_or_none():
    config = llama_config(50, d_model=32, n_layers=2, n_heads=2, d_ff=64)
    model = Transformer(config, torch.Generator().manual_seed(0))
    quantize_linears(model, Format("nf4", 4, 16), ("mlp.down",))
    add_lora(model, LoRA(2, targets=("attention.q", "mlp.down")))  # plain, then quantised
    for weight in trainable(model).values():
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="dequantise it first"):
        merge(model)
    assert all(layer.original is None for layer in wrapped_layers(model).values())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
