"""Checks for the exercises of lesson 20. Each names the mistake it recognises.

B rows, C inputs of a layer, D outputs, N numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.adapt.quant import nf4_levels
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.train.memory import TensorMemory


def codebook(student: Callable, *, bits: int = 3) -> None:
    """NF4 itself for 4 bits, and another number of bits."""
    answer = student(4)
    assert_shape(answer, (16,), "your codebook for 4 bits")
    if answer.dtype != torch.float32:
        raise AssertionError(f"your codebook has dtype {answer.dtype}; expected torch.float32")
    for n, right in ((4, nf4_levels()), (bits, _levels(bits)), (2, _levels(2))):
        assert_close(
            student(n),
            right,
            name=f"your codebook for {n} bits",
            mistakes={
                "your levels are upside down: the smallest comes first": right.flip(0),
                "your codebook has no zero: the halves are equally long": (
                    lambda n=n: _levels(n, zero=False)
                ),
                "your halves are swapped: the longer one is above zero": -right.flip(0),
                "you did not divide by the largest level": _levels(n, scaled=False),
                "your outermost probability is that of 4 bits: it depends on the bits": (
                    lambda n=n: _levels(n, m=32)
                ),
                "your levels are evenly spaced: they should be quantiles": (
                    torch.linspace(-1, 1, 2**n)
                ),
                "you return probabilities; ndtri maps them to quantiles": lambda n=n: _levels(
                    n, map=lambda p: p - 0.5
                ),
            },
            atol=1e-6,
        )
    refuses(student, 1, words="bits")


def _levels(
    bits: int,
    *,
    m: int | None = None,
    scaled: bool = True,
    zero: bool = True,
    map=torch.special.ndtri,
) -> Tensor:
    """The codebook, or one of its mistakes."""
    half, m = 2 ** (bits - 1), m or 2 * 2**bits
    outermost = 1 - (1 / m + 1 / (m - 2)) / 2
    above = map(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64))[:-1]
    below = map(torch.linspace(outermost, 0.5, half, dtype=torch.float64)) if zero else above
    levels = torch.cat((-below, above.flip(0)))
    return (levels / levels.abs().max() if scaled else levels).float()


def double_quantize(student: Callable, *, seed: int = 0) -> None:
    """Codes, steps and mean on scales whose rows have very different ranges."""
    random = torch.Generator().manual_seed(seed)
    scales = 0.2 + torch.rand(24, generator=random) ** 3
    scales[6:12] *= 4
    answer = student(scales, 6)
    assert_type(answer, tuple, "your result")
    codes, steps, mean = answer
    row_by_row = "you take the mean off row by row; there is one mean for all"
    assert_shape(mean, (), "your mean", {row_by_row: (4, 1)})
    assert_close(mean, scales.mean(), name="your mean")
    assert_shape(steps, (4, 1), "your steps", {"one step for all: each row has its own": ()})
    assert_shape(codes, (4, 6), "your codes")
    rows = (scales - scales.mean()).view(4, 6)
    right = rows.abs().amax(1, keepdim=True) / 127
    plain = scales.view(4, 6)
    assert_close(
        steps,
        right,
        name="your steps",
        mistakes={
            "you did not take the mean off before rounding": plain.amax(1, keepdim=True) / 127,
            "you divide by 128; the codes run from −127 to 127": right * 127 / 128,
            "your steps are the largest numbers: divide them by 127": right * 127,
            "you take the largest number, not the largest absolute one": (
                rows.amax(1, keepdim=True) / 127
            ),
        },
        atol=1e-8,
    )
    if codes.dtype != torch.int8:
        raise AssertionError(f"your codes have dtype {codes.dtype}; 8 bits are torch.int8")
    assert_close(
        codes,
        (rows / right).round().to(torch.int8),
        name="your codes",
        mistakes={
            "you cut off instead of rounding to the nearest": (rows / right).to(torch.int8),
            "your codes are those of the scales with their mean": (
                (plain / right).round().to(torch.int8)
            ),
        },
    )
    flat, _, _ = student(torch.full((8,), 3.0), 4)
    if flat.dtype != torch.int8 or flat.any():
        raise AssertionError("where all scales are equal, nothing is left: the codes must be 0")
    assert_unchanged(lambda s: student(s, 6), scales, name="double_quantize")
    refuses(student, scales, 7, words="group")


def frozen_product(student: Callable, *, seed: int = 0) -> None:
    """Values, gradient, and what is held between the passes."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 40, generator=random)
    codes = torch.randint(16, (50, 40), generator=random).to(torch.uint8)
    scales, table = torch.rand(50, 1, generator=random) + 0.5, nf4_levels()

    def reference(x: Tensor) -> Tensor:
        return x @ (table[codes.int()] * scales).T

    assert_close(
        student(x, codes, scales, table),
        reference(x),
        name="your product",
        mistakes={
            "you multiply with the codes; look up what they stand for in the table": (
                x @ (codes * scales).T
            ),
            "you forgot the scales": x @ table[codes.int()].T,
        },
        atol=1e-4,
    )
    leaf = x.clone().requires_grad_()
    with TensorMemory(leaf, codes, scales, table) as memory:
        before = memory.live
        y = student(leaf, codes, scales, table)
        kept = memory.live - before - y.nbytes
    if kept >= 4 * codes.numel():
        raise AssertionError(
            f"{kept:,} bytes are held until the backward pass, 4 or more for each weight: the "
            "unpacked weight is still kept, or its codes in more than a byte each"
        )
    assert_same_gradients(
        lambda x: student(x, codes, scales, table),
        reference,
        (x,),
        name="frozen_product",
        mistakes={
            "your backward pass forgot the scales": lambda x: _backward(
                x, reference, lambda g: g @ table[codes.int()]
            ),
            "your backward pass multiplies with the codes, not with what they stand for": (
                lambda x: _backward(x, reference, lambda g: g @ (codes * scales))
            ),
        },
    )


def _backward(x: Tensor, forward: Callable, backward: Callable) -> Tensor:
    """A function with a backward pass of its own."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient)

    return Wrong.apply(x)


def qlora_bytes(student: Callable, largest_rank: int, *, seed: int = 0) -> None:
    """The sum for odd shapes, part by part, and the rank that fits."""
    random = torch.Generator().manual_seed(seed)
    n, w, i, v, r = (int(k) for k in torch.randint(3, 90, (5,), generator=random) * 8)
    yours = student(n, w, i, v, r)
    assert_type(yours, (int, float), "your bytes")
    block, adapter = 4 * w * w + 3 * w * i, r * (8 * w + 3 * (w + i))
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    tables = 4 * v * w
    right = n * block * bits / 8 + tables + 12 * n * adapter
    assert_close(
        yours,
        right,
        name="your bytes",
        mistakes={
            "you count bits, not bytes: divide by 8": right + n * block * bits * 7 / 8,
            "the scales take 32 bits for each block here: without double quantization": (
                right + n * block * (4.5 - bits) / 8
            ),
            "you forgot the scales of the scales": right - n * block * 32 / (64 * 256) / 8,
            "you forgot all scales": right - n * block * (bits - 4) / 8,
            "you count the embedding once; the output is a matrix of its own": right - tables / 2,
            "your embeddings are in 4 bits; they stay in 16": right - tables * (1 - bits / 16),
            "you forgot Adam's averages": right - 8 * n * adapter,
            "you forgot the gradients of the adapters": right - 2 * n * adapter,
            "Adam's two averages take 32 bits each: 8 bytes, not 4": right - 4 * n * adapter,
            "your adapters are those of one block": right - 12 * (n - 1) * adapter,
            "an adapter has A and B: rank · (inputs + outputs)": (
                right - 12 * n * (adapter - r * (4 * w + 3 * i))
            ),
        },
        rtol=1e-9,
    )
    assert_equal(
        largest_rank,
        32,
        name="largest_rank",
        mistakes={
            "with rank 64 less than 5 GB are left for activations": 64,
            "a larger rank still leaves 5 GB": 16,
        },
    )


def kept_bytes(student: Callable, kept: int, remedy: str, *, seed: int = 0) -> None:
    """What simple functions keep, each tensor once, and the judgement."""
    x = torch.rand(10, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    yours = student(torch.exp, x)
    assert_type(yours, int, "your bytes")
    assert_equal(
        yours,
        40,
        name="what exp keeps",
        mistakes={
            "you count numbers, not bytes": 10,
            "you count tensors, not bytes": 1,
            "you count nothing: is the function called inside the context?": 0,
        },
    )
    assert_equal(
        student(lambda x: (x * x).sin(), x),
        80,
        name="what sin(x·x) keeps",
        mistakes={"x · x keeps x twice, in one place: count it once": 120},
    )
    assert_equal(student(lambda x: x + 1, x), 0, name="what x + 1 keeps")
    assert_equal(
        kept,
        8000,
        name="kept",
        mistakes={
            "you set the number of tensors, not of bytes": 20,
            "you set the number of numbers, not of bytes": 2000,
        },
    )
    assert_equal(
        remedy,
        "b",
        name="remedy",
        mistakes={
            "(a) halves adapters that are small already; what grew is something else": "a",
            "(c) moves the averages of small adapters; they do not grow with the text": "c",
        },
    )
