"""GPTQ against a slow reference, and the methods around it against what they promise."""

import pytest
import torch
from torch import nn

from minillm.adapt.gptq import gptq, input_grams, output_error
from minillm.adapt.outliers import (
    awq_scales,
    int8_matmul,
    llm_int8,
    outlier_channels,
    smoothing_scales,
)
from minillm.adapt.qat import fake_quantize, finish_qat, start_qat
from minillm.adapt.quant import Format, dequantize, quantize
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer


@pytest.fixture
def problem():
    """A weight, and inputs whose channels depend on each other as real ones do."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12, generator=generator)
    x = torch.randn(40, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    return weight, x


def slow_gptq(weight, gram, format, damping):
    """Round one column; solve a least-squares problem for all columns behind it; repeat.

    With the rounded columns R fixed, the best others F minimise tr(Δ H Δᵀ), Δ = [ΔR, ΔF] against
    the original weight: ΔF = −ΔR H_RF H_FF⁻¹.
    """
    weight, gram = weight.double(), gram.double()
    H = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    current, group = weight.clone(), format.group or weight.shape[1]
    for j in range(weight.shape[1]):
        start = j - j % group
        if j == start:
            at_start = current[:, start : start + group].clone()
        row_format = Format(format.kind, format.bits, 0)
        # The same grid as at the start of the group: its extremes stand beside the new column.
        extremes = torch.stack((at_start.amin(1), at_start.amax(1)), dim=1)
        both = torch.cat((current[:, j : j + 1], extremes), dim=1).float()
        if format.kind == "absmax":
            limit = at_start.abs().amax(1, keepdim=True).float()
            both = torch.cat((both[:, :1].clamp(-limit, limit), limit, -limit), dim=1)
        else:
            both[:, 0] = both[:, 0].clamp(extremes[:, 0].float(), extremes[:, 1].float())
        if both.shape[1] % 2:  # codes are packed in pairs
            both = torch.cat((both, both[:, -1:]), dim=1)
        current[:, j] = dequantize(quantize(both, row_format))[:, 0].double()
        done = current[:, : j + 1] - weight[:, : j + 1]
        if j + 1 < weight.shape[1]:
            H_FF, H_RF = H[j + 1 :, j + 1 :], H[: j + 1, j + 1 :]
            current[:, j + 1 :] = weight[:, j + 1 :] - done @ H_RF @ torch.linalg.inv(H_FF)
    return current


@pytest.mark.parametrize("kind", ["absmax", "affine"])
@pytest.mark.parametrize("group", [0, 4])
def test_gptq_equals_solving_least_squares_after_every_column(problem, kind, group):
    weight, x = problem
    format, gram = Format(kind, 4, group), x.T @ x
    ours = dequantize(gptq(weight, gram, format))
    torch.testing.assert_close(
        ours.double(), slow_gptq(weight, gram, format, 0.01), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_moves_the_outputs_less_than_rounding(bits):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 48, generator=generator)
    x = torch.randn(100, 48, generator=generator) @ torch.randn(48, 48, generator=generator)
    gram, format = x.T @ x, Format("absmax", bits, 0)
    plain = output_error(weight, dequantize(quantize(weight, format)), gram)
    better = output_error(weight, dequantize(gptq(weight, gram, format)), gram)
    assert better < 0.7 * plain
    brute = ((x @ (weight - dequantize(quantize(weight, format))).T) ** 2).sum()
    assert plain == pytest.approx((brute / ((x @ weight.T) ** 2).sum()).item(), rel=1e-4)


def test_independent_inputs_leave_nothing_to_make_up(problem):
    """A diagonal gram: every column is rounded as it is."""
    weight, _ = problem
    format = Format("affine", 4, 4)
    ours = dequantize(gptq(weight, torch.eye(12), format))
    torch.testing.assert_close(ours, dequantize(quantize(weight, format)), rtol=0, atol=1e-6)


def test_grams_are_of_the_inputs_a_layer_really_sees():
    model = Transformer(llama_config(31, d_model=12, n_layers=2, n_heads=3))
    batches = [
        torch.randint(0, 31, (2, 5), generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    grams = input_grams(model, ["blocks.0.attention.qkv"], batches)
    seen = [model.blocks[0].attention_norm(model.embedding(t)).flatten(0, 1) for t in batches]
    expected = torch.cat(seen).T @ torch.cat(seen)
    torch.testing.assert_close(grams["blocks.0.attention.qkv"], expected.detach())
    with pytest.raises(ValueError, match=r"no linear layers: \['blocks.0'\]"):
        input_grams(model, ["blocks.0"], batches)


def test_integer_products_equal_the_rounded_matrices(problem):
    weight, x = problem
    rounded = [dequantize(quantize(m, Format("absmax", 8, 0))) for m in (x, weight)]
    torch.testing.assert_close(int8_matmul(x, weight), rounded[0] @ rounded[1].T)


def test_outliers_apart_repair_eight_bits(problem):
    weight, x = problem
    x = x / x.abs().max()
    x[7, 3] = 50.0  # one token is enough
    truth = x @ weight.T
    assert outlier_channels(x).nonzero().flatten().tolist() == [3]
    together = (int8_matmul(x, weight) - truth).abs().max()
    apart = (llm_int8(x, weight) - truth).abs().max()
    assert apart < 0.1 * together
    torch.testing.assert_close(llm_int8(x, weight, threshold=0.0), truth)


def test_a_channel_is_loud_if_any_token_reaches_the_threshold():
    x = torch.tensor([[5.9, 0.0, -6.1, 1.0], [0.0, 6.0, 0.0, -3.0]])
    assert outlier_channels(x).tolist() == [False, True, True, False]
    assert outlier_channels(x, 3.0).tolist() == [True, True, True, True]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_changes_nothing_but_the_loudness(problem, alpha):
    weight, x = problem
    s = smoothing_scales(x, weight, alpha)
    torch.testing.assert_close((x / s) @ (weight * s).T, x @ weight.T, rtol=1e-4, atol=1e-4)
    loud, heavy = (x / s).abs().amax(0), (weight * s).abs().amax(0)
    expected = {0.0: heavy / heavy, 0.5: loud, 1.0: heavy}[alpha]
    torch.testing.assert_close({0.0: heavy, 0.5: heavy, 1.0: heavy}[alpha], expected)
    if alpha == 1.0:
        torch.testing.assert_close(loud, torch.ones_like(loud))
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        smoothing_scales(x, weight, 1.5)


def test_awq_is_never_worse_than_rounding(problem):
    weight, x = problem
    x = x.clone()
    x[:, 5] *= 30
    format = Format("absmax", 3, 0)
    s = awq_scales(x, weight, format)
    plain = (x @ dequantize(quantize(weight, format)).T - x @ weight.T).square().mean()
    ours = (x @ (dequantize(quantize(weight * s, format)) / s).T - x @ weight.T).square().mean()
    assert ours < 0.5 * plain
    errors = []
    for power in torch.linspace(0, 1, 20):
        tried = x.abs().mean(0) ** power
        rounded = dequantize(quantize(weight * tried, format)) / tried
        errors.append((x @ rounded.T - x @ weight.T).square().mean())
    assert ours == pytest.approx(min(errors).item(), rel=1e-3)
    assert s.log().mean().abs() < 1e-5


def test_straight_through_rounds_forward_and_not_backward(problem):
    weight, x = problem
    weight.requires_grad_()
    format = Format("absmax", 3, 0)
    rounded = fake_quantize(weight, format)
    torch.testing.assert_close(rounded, dequantize(quantize(weight, format)))
    (gradient,) = torch.autograd.grad((x @ rounded.T).square().sum(), weight)
    # The smooth part by finite differences: the loss as a function of the rounded weight.
    at, step = rounded.detach().double(), 1e-6
    x = x.double()
    numeric = torch.zeros_like(at)
    for i in range(at.shape[0]):
        for j in range(at.shape[1]):
            nudge = torch.zeros_like(at)
            nudge[i, j] = step
            up, down = ((x @ (at + n).T).square().sum() for n in (nudge, -nudge))
            numeric[i, j] = (up - down) / (2 * step)
    torch.testing.assert_close(gradient.double(), numeric, rtol=1e-4, atol=1e-2)


def test_training_on_the_grid_ends_on_the_grid():
    model = Transformer(llama_config(31, d_model=12, n_layers=1, n_heads=3))
    tokens = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
    format = Format("absmax", 3, 0)
    start_qat(model, format, ("mlp.down",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(tokens).detach()
    model(tokens).square().mean().backward()
    optimizer.step()
    trained = model(tokens).detach()
    assert (trained - before).abs().max() > 1e-3
    finish_qat(model)
    assert type(model.blocks[0].mlp.down) is nn.Linear
    torch.testing.assert_close(model(tokens), trained)
    weight = model.blocks[0].mlp.down.weight.detach()
    torch.testing.assert_close(dequantize(quantize(weight, format)), weight)
    with pytest.raises(ValueError, match="parts of fused layers"):
        start_qat(model, format, ("mlp.gate",))


@pytest.mark.parametrize(
    "format, columns, words",
    [
        (Format("absmax", 4, 0), 11, r"gram has shape \(11, 11\): expected \(12, 12\)"),
        (Format("absmax", 4, None), 12, "needs a group"),
        (Format("nf4", 4, 4, double=True), 12, "plain scales"),
    ],
)
def test_gptq_refuses(problem, format, columns, words):
    with pytest.raises(ValueError, match=words):
        gptq(problem[0], torch.eye(columns), format)
