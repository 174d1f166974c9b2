"""Checks for the exercises of lesson 19. Each names the mistake it recognises.

D rows (outputs of a layer), C columns (its inputs).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.adapt import quant
from minillm.adapt.gptq import inverse_factor
from minillm.adapt.qat import fake_quantize
from minillm.adapt.quant import Format
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)


def affine_quantize(student: Callable, *, seed: int = 0) -> None:
    """Codes, scales and offsets of each row, far from zero, and of a row without any spread."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 7, generator=random) * torch.tensor([[0.1], [1.0], [20.0]]) + 5
    for bits in (3, 8):
        answer = student(x, bits)
        assert_type(answer, tuple, "your result")
        codes, scales, offsets = answer
        assert_shape(scales, (3, 1), "your scales", {"one scale for all: each row has its own": ()})
        assert_shape(offsets, (3, 1), "your offsets")
        right = _affine(x, bits)
        assert_close(
            offsets,
            right[2],
            name="your offsets",
            mistakes={
                "your offset is the largest number; code 0 means the smallest": x.amax(1)[:, None]
            },
        )
        n = 2**bits - 1
        assert_close(
            scales,
            right[1],
            name="your scales",
            mistakes={
                "2ᵇ codes have 2ᵇ − 1 steps between them; you divide by 2ᵇ": right[1] * n / (n + 1),
                "your scale forgets the offset: the range is max − min, not max": (
                    x.amax(1)[:, None] / n
                ),
                "this is the scale of absmax: here no code is negative": (
                    x.abs().amax(1)[:, None] / (2 ** (bits - 1) - 1)
                ),
            },
        )  # fmt: skip
        steps = (x - right[2]) / right[1]
        if codes.dtype != torch.uint8:
            raise AssertionError(f"your codes have dtype {codes.dtype}; expected torch.uint8")
        assert_close(
            codes,
            right[0],
            name="your codes",
            mistakes={
                "you cut off the fraction; round to the nearest code": steps.to(torch.uint8),
                "you forgot to subtract the offset": (x / right[1]).round().to(torch.uint8),
            },
        )
    flat = student(torch.full((2, 4), 3.0), 4)
    assert_close(flat[0], torch.zeros(2, 4, dtype=torch.uint8), name="the codes of a constant row")
    assert_close(flat[1], torch.zeros(2, 1), name="the scale of a constant row")
    assert_close(flat[2], torch.full((2, 1), 3.0), name="the offset of a constant row")
    assert_unchanged(lambda x: student(x, 4), x, name="affine_quantize")
    refuses(student, x, 1, words="bits")
    refuses(student, x, 9, words="bits")


def _affine(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The package's answer, codes not packed."""
    answer = quant.quantize(x.repeat(1, 2), Format("affine", bits, 0))  # twice: an even width
    codes = quant.unpack(answer.codes) if bits <= 4 else answer.codes
    return codes[:, : x.shape[1]], answer.scales, answer.offsets


def pack_int4(student: Callable, undo: Callable, *, seed: int = 0) -> None:
    """Bytes against the package's, and back."""
    codes = torch.randint(16, (3, 10), generator=torch.Generator().manual_seed(seed))
    codes = codes.to(torch.uint8)
    packed = student(codes)
    wrong_size = {"nothing is saved: two codes must share a byte": (3, 10)}
    assert_shape(packed, (3, 5), "your bytes", wrong_size)
    if packed.dtype != torch.uint8:
        raise AssertionError(f"your bytes have dtype {packed.dtype}; expected torch.uint8")
    right = quant.pack(codes)
    swapped = quant.pack(codes.view(3, 5, 2).flip(-1).flatten(1))
    halves = codes[:, :5] | codes[:, 5:] << 4
    assert_close(
        packed,
        right,
        name="your bytes",
        mistakes={
            "your halves are swapped: the even column goes into the low four bits": swapped,
            "you pair column j with column j + C/2; neighbours share a byte": halves,
            "you add the two codes: the second must move up by four bits": (
                codes[:, 0::2] + codes[:, 1::2]
            ),
            "you move the second code by three bits; four make a factor of 16": (
                codes[:, 0::2] | codes[:, 1::2] << 3
            ),
        },
    )
    back = undo(right)
    assert_shape(back, (3, 10), "your unpacked codes")
    assert_close(
        back,
        codes,
        name="your unpacked codes",
        mistakes={
            "all low halves, then all high ones: put the columns back in turn": torch.cat(
                (right & 15, right >> 4), dim=1
            ),
            "your unpacked halves are swapped": codes.view(3, 5, 2).flip(-1).flatten(1),
            "the low half still holds the high one: mask it with & 15": torch.stack(
                (right, right >> 4), dim=-1
            ).flatten(1),
        },
    )
    assert_unchanged(student, codes, name="pack_int4")
    refuses(student, codes[:, :9], words="even")
    refuses(student, codes + 1 | 16, words="15")


def fixed_fake_quantize(student: Callable, *, seed: int = 0) -> None:
    """The rounded weight, and a gradient that reaches every entry of it."""
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
    for bits in (2, 4):
        format = Format("absmax", bits, 0)
        right = fake_quantize(weight, format)
        answer = student(weight, bits)
        assert_shape(answer, (3, 6), "your weight")
        assert_close(
            answer,
            right,
            name=f"your weight at {bits} bits",
            mistakes={
                "your weight is not rounded: it comes back as it was": weight,
                "one scale for the whole matrix: each row has its own": lambda format=format: (
                    fake_quantize(weight, Format("absmax", format.bits, None))
                ),
                "you return the codes: multiply them by the scale again": right
                / _scale(weight, bits),
            },
        )
        assert_same_gradients(
            lambda w, bits=bits: student(w, bits),
            lambda w, format=format: fake_quantize(w, format),
            (weight,),
            name="fixed_fake_quantize",
            mistakes={
                "the bug is still there: only the largest weight of a row gets a gradient": (
                    lambda w, bits=bits: _rounded(w, bits)
                ),
                "the gradient also runs through the scale; detach the whole correction": (
                    lambda w, bits=bits: _rounded(w, bits) + w - w.detach()
                ),
            },
        )
    assert_unchanged(lambda w: student(w, 4), weight, name="fixed_fake_quantize")


def _rounded(weight: Tensor, bits: int) -> Tensor:
    scale = _scale(weight, bits)
    return (weight / scale).round() * scale


def _scale(weight: Tensor, bits: int) -> Tensor:
    return weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)


def gptq_column(student: Callable, *, seed: int = 0) -> None:
    """One column against the closed form, and all columns in turn against the package."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=random, dtype=torch.float64)
    x = torch.randn(30, 6, generator=random, dtype=torch.float64)
    x = x @ torch.randn(6, 6, generator=random, dtype=torch.float64)
    factor = inverse_factor(x.T @ x, damping=0.01)
    scale = weight.abs().amax(1) / 3
    for j in (0, 2, 5):
        answer = student(weight, j, scale, factor)
        assert_shape(answer, (4, 6), "your weight")
        rounded = (weight[:, j] / scale).round() * scale
        lost = weight[:, j] - rounded
        step = lost / factor[j, j]

        def moved(by: Tensor, j: int = j, rounded: Tensor = rounded) -> Tensor:
            wrong = weight.clone()
            wrong[:, j + 1 :] -= by[:, j + 1 :]
            wrong[:, j] = rounded
            return wrong

        behind = {}
        if j < 5:
            behind = {
                "the error has the wrong sign: what was lost is subtracted behind": (
                    moved(-step[:, None] * factor[j])
                ),
                "you forgot to divide the error by factor[j, j]": moved(lost[:, None] * factor[j]),
                "the columns behind j did not move; row j of the factor moves them, not column j, "
                "which is zero there": moved(torch.zeros(4, 6)),
            }
        assert_close(answer[:, j], rounded, name=f"your column {j}")
        assert_close(answer[:, :j], weight[:, :j], name="the columns before j, which are settled")
        right = moved(step[:, None] * factor[j])
        assert_close(answer, right, name=f"your weight after column {j}", mistakes=behind)
    assert_unchanged(lambda w: student(w, 1, scale, factor), weight, name="gptq_column")
    refuses(student, weight, 6, scale, factor, words="column")


def relative_error(student: Callable, best: str, verdict: str, *, seed: int = 0) -> None:
    """The measurement on a matrix with loud columns, and the two judgements."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 24, generator=random)
    weight[:, 5] *= 8
    assert_close(student(torch.tensor([[1.0, 0.5, 2.0, 2.0]]), 2, 2), 0.5 / 9.25**0.5,
                 name="the relative error of 1 0.5 2 2 at 2 bits in pairs")  # fmt: skip
    for bits, group in ((4, 8), (3, 24)):
        yours = student(weight, bits, group)
        assert_type(yours, float, "your error")
        lost = quant.dequantize(quant.quantize(weight, Format("absmax", bits, group))) - weight
        assert_close(
            yours,
            (lost.norm() / weight.norm()).item(),
            name=f"your error at {bits} bits in groups of {group}",
            mistakes={
                "you return the squared error; take its root": (
                    (lost.square().sum() / weight.square().sum()).item()
                ),
                "divide by the norm of the weight, not by √(D · C)": (
                    lost.square().mean().sqrt().item()
                ),
            },
        )
    refuses(student, weight, 4, 7, words="group")
    assert_equal(
        best,
        "b",
        name="best",
        mistakes={
            "(a) has the levels of (b), but one loud weight stretches 128 steps, not 32": "a",
            "(c) has the finest groups, but three bits leave only seven levels": "c",
        },
    )
    assert_equal(
        verdict,
        "b",
        name="verdict",
        mistakes={
            "(a) generalises from weights that were on this very grid before you came": "a",
            "(c) the code is right: weights that lie on the grid are not moved by rounding": "c",
        },
    )
