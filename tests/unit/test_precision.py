"""Bit patterns against torch's own types, loss scaling against GradScaler, autocast in the loop."""

import math
import struct
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from test_loop import Tiny, make_batches
from torch import Tensor, nn

from minillm.data.packing import Batch
from minillm.model.config import llama_config
from minillm.model.moe import grouped_linear
from minillm.model.transformer import Transformer
from minillm.train import precision
from minillm.train.loop import TrainingDiverged, accumulate_gradients, token_loss, train
from minillm.train.precision import (
    E4M3,
    FORMATS,
    FP16,
    FP32,
    LossScale,
    RoundedProducts,
    in_precision,
)
from minillm.train.recompute import checkpoint_blocks

UNSIGNED = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32}


def patterns_of(form, numbers):
    """torch's bit patterns of float32 numbers in a format."""
    return numbers.to(form.dtype).view(UNSIGNED[form.bits]).tolist()


@pytest.mark.parametrize("form", [f for f in FORMATS if f.bits < 32], ids=lambda f: f.name)
def test_every_pattern_means_what_torch_reads(form):
    patterns = torch.arange(2**form.bits, dtype=torch.int32).to(UNSIGNED[form.bits])
    theirs = patterns.view(form.dtype).double().tolist()
    for pattern, value in enumerate(theirs):
        ours = form.decode(pattern)
        assert ours == value or (math.isnan(ours) and math.isnan(value)), pattern
        assert math.copysign(1, ours) == math.copysign(1, value) or math.isnan(value)
        if not math.isnan(value):
            assert form.encode(value) == pattern


def awkward_numbers(form):
    """Halfway between neighbours, just beside it, at the ends of the range, and at random."""
    grid = torch.tensor([form.decode(p) for p in range(0, 2 ** (form.bits - 1), 7)])
    grid = grid[grid.isfinite()].double()
    middles = (grid[1:] + grid[:-1]) / 2
    ends = torch.tensor(
        [0.0, -0.0, form.smallest, form.smallest / 2, form.smallest * 0.51, form.smallest * 1.5]
        + [form.largest * f for f in (0.999, 1.0, 1.01, 1.03, 1.04, 1.07, 1.2, 3.0)]
        + [math.inf, -math.inf]
    )
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double().exp() ** 5
    values = torch.cat([grid, middles, middles * (1 + 1e-6), ends.double(), noise, -noise])
    return values.float()


@pytest.mark.parametrize("form", FORMATS[1:], ids=lambda f: f.name)
def test_rounding_is_torchs(form):
    numbers = awkward_numbers(form)
    ours = [form.encode(x) for x in numbers.tolist()]
    nan = [math.isnan(form.decode(p)) for p in patterns_of(form, numbers)]
    for x, mine, theirs, is_nan in zip(
        numbers.tolist(), ours, patterns_of(form, numbers), nan, strict=True
    ):
        assert mine == theirs or (is_nan and math.isnan(form.decode(mine))), x


def test_float32_is_what_python_packs():
    """In double precision the rounding is Python's own, through `struct`."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(3000, generator=generator, dtype=torch.float64).exp() ** 20
    for x in [*numbers.tolist(), 1e-45, 7e-46, 1e-40, -3.0, 0.1, math.pi]:
        if x < 3e38:
            pattern = struct.unpack("<I", struct.pack("<f", x))[0]
            assert FP32.encode(x) == pattern
            assert FP32.decode(pattern) == struct.unpack("<f", struct.pack("<f", x))[0]


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_limits_are_torchs(form):
    info = torch.finfo(form.dtype)
    assert (form.bits, form.largest, form.epsilon) == (info.bits, info.max, info.eps)
    assert (form.smallest_normal, form.smallest) == (info.tiny, form.decode(1))
    assert form.smallest > 0 == form.encode(form.smallest / 2)


def test_fields_and_refusals():
    assert FP16.fields(FP16.encode(-1.5)) == (1, 15, 512)
    assert E4M3.decode(E4M3.encode(1e9)) == 448.0
    assert FP16.decode(FP16.encode(1e9)) == math.inf
    assert all(math.isnan(form.decode(form.encode(math.nan))) for form in FORMATS)
    with pytest.raises(ValueError, match="FP8 E4M3 has 8 bits"):
        E4M3.decode(256)
    with pytest.raises(ValueError, match="precision='fp8': expected one of fp32, fp16, bf16"):
        in_precision(token_loss, "fp8")


def test_the_scale_follows_grad_scaler():
    """200 steps with overflows at random, growth every 7 good steps."""
    ours = LossScale(scale=2.0**10, interval=7)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    overflows = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.1
    scales = set()
    for overflow in overflows.tolist():
        optimizer.zero_grad()
        theirs.scale((weight * (math.inf if overflow else 1.0)).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.update(not overflow)
        assert ours.scale == theirs.get_scale()
        scales.add(ours.scale)
    assert len(scales) > 4


def run(kind, loss_fn=token_loss, steps=40):
    model = Tiny()
    history = train(
        model, make_batches(), steps=steps, lr=0.05, precision=kind, loss_fn=loss_fn,
        progress=False,
    )  # fmt: skip
    return model, history


def test_precision_casts_products_and_nothing_else():
    seen = []

    def loss_fn(model, batch):
        logits = model(batch.tokens)
        loss, count = token_loss(model, batch)
        seen.append((logits.dtype, loss.dtype))
        return loss, count

    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        seen.clear()
        model, _ = run(kind, loss_fn, steps=2)
        assert set(seen) == {(dtype, torch.float32)}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_float16_survives_an_overflow_and_ends_where_float32_does():
    """A summed loss times 2¹⁶ overflows: the first steps are skipped, each halves the scale."""
    _, exact = run("fp32")
    _, history = run("fp16")
    assert history.skipped == list(range(len(history.skipped))) and 0 < len(history.skipped) < 10
    first = history.gradient_norms[: len(history.skipped)]
    assert not any(map(math.isfinite, first)) and all(map(math.isfinite, history.losses))
    assert abs(history.losses[-1] - exact.losses[-1]) < 0.1 * exact.losses[0]
    assert exact.skipped == []


def test_the_scale_is_undone():
    """AdamW and clipping forgive a constant factor, so the gradients themselves are compared."""
    model, batch = Tiny(), next(iter(make_batches()))
    plain = accumulate_gradients(model, [batch])
    gradients = [p.grad.clone() for p in model.parameters()]
    assert accumulate_gradients(model, [batch], scale=1024.0) == plain
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_float16_stops_when_it_is_not_the_scale():
    """A loss that is a number with a gradient that is none: no scale helps."""

    def broken(model, batch):
        loss, count = token_loss(model, batch)
        return loss + 0 * torch.sqrt(model.mix.bias.sum() * 0), count

    with pytest.raises(TrainingDiverged, match="gradient norm nan"):
        run("fp16", broken, steps=100)


def test_a_small_gradient_needs_the_scale():
    """Seven digits below 1, float16 has only zeros; a factor of 2¹⁶ saves them."""
    x = torch.full((4, 4), 1e-4)
    for scale, expected in ((1.0, 0.0), (2.0**16, 1e-8)):
        weight = nn.Parameter(torch.ones(4, 4))
        with torch.autocast("cpu", torch.float16):
            loss = (x @ weight).float().mean() * 4e-4
        (loss * scale).backward()
        found = (weight.grad / scale).mean().item()
        assert found == pytest.approx(expected, rel=0.05)


def small_integers(*shape):
    """Their products' sums are exact in float32, so that any order of adding gives the same."""
    return torch.randint(-8, 9, shape).float().requires_grad_()


PRODUCTS = {
    "linear": (F.linear, (2, 3, 5), (7, 5), (7,)),
    "keyword": (lambda x, w, b: F.linear(x, w, bias=b), (2, 3, 5), (7, 5), (7,)),
    "@": (lambda x, w: x @ w, (2, 3, 5), (5, 7)),
    "matmul": (torch.matmul, (3, 5), (2, 5, 7)),
    "method": (Tensor.matmul, (3, 5), (5,)),
    "mm": (torch.mm, (3, 5), (5, 7)),
    "bmm": (torch.bmm, (2, 3, 5), (2, 5, 7)),
    "einsum": (lambda x, w: torch.einsum("btc,cd->tbd", x, w), (2, 3, 5), (5, 7)),
    "grouped": (lambda x, w: grouped_linear(x, w, torch.tensor([3, 0, 2])), (5, 8), (3, 16, 8)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PRODUCTS)
def test_rounded_products_are_autocasts(name, dtype):
    product, *shapes = PRODUCTS[name]
    torch.manual_seed(0)
    inputs = [small_integers(*shape) for shape in shapes]
    found = []
    for mode in (nullcontext(), RoundedProducts()):
        with torch.autocast("cpu", dtype), mode:
            y = product(*inputs)
        gradients = torch.autograd.grad(y.float().square().sum() / 64, inputs)
        found.append((y, *gradients))
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert found[1][0].dtype == dtype and found[1][1].dtype == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_rounded_attention_is_autocasts(masked):
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    how = {"attn_mask": torch.randn(9, 9)} if masked else {"is_causal": True}
    with torch.autocast("cpu", torch.bfloat16):
        theirs = F.scaled_dot_product_attention(q, k, v, **how)
        with RoundedProducts():
            ours = F.scaled_dot_product_attention(q, k, v, **how)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_rounded_products_leave_alone_what_autocast_does():
    x, n = torch.randn(4, 4), torch.arange(16).view(4, 4)
    with RoundedProducts():
        assert (x @ x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(n @ n, n.double().matmul(n.double()).long())
            assert torch.equal(x.double() @ x.double(), (x.double()[:, :, None] * x).sum(1))
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(x @ x, torch.mm(x, x)) and (x @ x).dtype == torch.float32


@pytest.mark.parametrize("imitated", [{torch.bfloat16}, set()], ids=["imitated", "PyTorch's own"])
def test_bfloat16_trains_alike_on_every_processor(monkeypatch, imitated):
    """Recomputing repeats the same products, bit for bit, and either way ends near float32."""
    monkeypatch.setattr(precision, "IMITATED", imitated)
    config = llama_config(11, d_model=16, n_layers=2, n_heads=2)
    batch = Batch(torch.arange(24).view(3, 8) % 11, torch.arange(1, 25).view(3, 8) % 11)
    torch.manual_seed(0)
    model = Transformer(config)
    gradients = []
    for loss_fn in (token_loss, *[in_precision(token_loss, "bf16")] * 2):
        if len(gradients) == 2:
            checkpoint_blocks(model)
        accumulate_gradients(model, [batch], loss_fn)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, kept, recomputed = gradients
    assert torch.equal(kept, recomputed)
    assert 1e-4 < (kept - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize(
    "machine, has_products, has_amx, gains",
    [
        ("x86_64", True, True, True),
        ("AMD64", True, False, False),
        ("x86_64", False, False, False),
        ("arm64", True, False, True),
        ("aarch64", False, False, False),
    ],
)
def test_bfloat16_pays_with_amx_or_on_arm(monkeypatch, machine, has_products, has_amx, gains):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(precision, "cpu_multiplies", lambda kind: has_products)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    assert precision.cpu_gains_by("bf16") == gains
    assert precision.cpu_gains_by("fp16") == has_products
