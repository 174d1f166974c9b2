"""Checks for the exercises of lesson 14. Each names the mistake it recognises.

N positions, V vocabulary, B batch, C channels.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.train.accounting import state_bytes
from minillm.train.precision import BF16


def decode_bfloat16(student: Callable, *, seed: int = 0) -> None:
    """Ordinary, subnormal, signed and special patterns, against the package's format."""
    random = torch.Generator().manual_seed(seed)
    ordinary = torch.randint(2**7, 2**15 - 2**7, (20,), generator=random).tolist()
    assert_type(student(0x3FC0), float, "decode_bfloat16(0x3FC0)")
    for pattern in (0x3FC0, *ordinary):
        _, exponent, mantissa = BF16.fields(pattern)
        fraction = mantissa / 128
        _same_number(
            student(pattern),
            pattern,
            {
                "your bias is 128; a field of 127 means 2⁰": (1 + fraction)
                * 2.0 ** (exponent - 128),
                "your bias is that of float16": (1 + fraction) * 2.0 ** (exponent - 15),
                "you forgot the leading 1 of ordinary numbers": fraction * 2.0 ** (exponent - 127),
                "your mantissa is divided by 127; m counts 128ths": (1 + mantissa / 127)
                * 2.0 ** (exponent - 127),
                "you do not subtract the bias": (1 + fraction) * 2.0**exponent,
            },
        )
        _same_number(
            student(pattern + 2**15),
            pattern + 2**15,
            {"you ignore the sign bit": BF16.decode(pattern)},
        )
    for pattern in (0, 1, 77, 127):
        fraction = pattern / 128
        _same_number(
            student(pattern),
            pattern,
            {
                "subnormals (e = 0) have no leading 1": (1 + fraction) * 2.0**-127,
                "subnormals have the exponent of e = 1, which is −126": fraction * 2.0**-127,
            },
        )
    too_far = "e = 255 is no ordinary exponent: it means infinite or NaN"
    infinite = "only a mantissa of 0 is infinite; the others are NaN"
    _same_number(student(0x7F80), 0x7F80, {too_far: 2.0**128})
    _same_number(student(0xFF80), 0xFF80, {"infinity has a sign, too": math.inf})
    _same_number(student(0x7F81), 0x7F81, {infinite: math.inf, too_far: (1 + 1 / 128) * 2.0**128})
    refuses(student, 2**16, words="16 bits")
    refuses(student, -1, words="16 bits")


def _same_number(answer: object, pattern: int, mistakes: Mapping[str, float]) -> None:
    """Exactly equal, NaN to NaN; a mistake may coincide with the truth on some patterns."""
    name, right = f"decode_bfloat16(0x{pattern:04X})", BF16.decode(pattern)
    assert_type(answer, (float, int), name)
    if answer == right or (math.isnan(answer) and math.isnan(right)):
        return
    for message, wrong in mistakes.items():
        if answer == wrong:
            raise AssertionError(f"{message} ({name} is {answer}; expected {right})")
    raise AssertionError(f"{name} is {answer}; expected {right}")


def state_gigabytes(student: Callable, n_gpus_needed: int, *, seed: int = 0) -> None:
    """ZeRO's table for random sizes, and the count for 70 billion parameters."""
    random = torch.Generator().manual_seed(seed)
    assert_type(student(7, 1, 0), (float, int), "state_gigabytes(7, 1, 0)")
    for billions, n_gpus, stage in [(7, 1, 0), (7, 8, 0), (7, 8, 1), (7, 8, 2), (7, 8, 3)] + [
        (float(1 + 99 * torch.rand((), generator=random)), 4, stage) for stage in range(4)
    ]:
        right = state_bytes(billions, stage=stage, n_processes=n_gpus).total

        def cut(order: tuple[int, int, int], stage: int = stage, n: int = n_gpus) -> float:
            """Total if each group of bytes is divided from its stage in `order` on."""
            return sum(
                size / (n if stage >= first else 1)
                for size, first in zip((2, 2, 12), order, strict=True)
            )

        assert_close(
            student(billions, n_gpus, stage),
            right,
            name=f"state_gigabytes({billions:g}, {n_gpus}, {stage})",
            mistakes={
                "4 bytes a parameter are missing from the optimiser's 12: the 32-bit copy, or one "
                "of Adam's two averages": right - 4 * billions / (n_gpus if stage else 1),
                "you forgot the gradients": right - 2 * billions / (n_gpus if stage > 1 else 1),
                "you divide at stage 0; there every GPU keeps everything": billions * 16 / n_gpus,
                "you divide the optimiser's numbers at stage 0; there every GPU keeps everything": (
                    billions * cut((3, 2, 0))
                ),
                "your stages are the wrong way round: the optimiser is cut first": billions
                * cut((1, 2, 3)),
                "your stages begin one too late": billions * cut((4, 3, 2)),
                "you divide only by what the stage adds; the earlier parts stay divided": billions
                * (16 - (0, 12, 2, 2)[stage] * (1 - 1 / n_gpus)),
                "your answer is in bytes per parameter, or in another unit": right / billions,
            },
        )
    refuses(student, 7, 8, 4, words="stage")
    assert_equal(
        n_gpus_needed,
        32,
        name="n_gpus_needed",
        mistakes={
            "16 GPUs would be enough if nothing were left for activations": 16,
            "half as many would do: is your comparison the right way round?": 64,
        },
    )


def unscaled(student: Callable, *, seed: int = 0) -> None:
    """Good steps, the step that grows, overflows, and numbers too small for float16."""
    random = torch.Generator().manual_seed(seed)
    good = [torch.randn(shape, generator=random).half() for shape in ((3, 4), (5,))]
    tiny = [torch.full((3,), 2.0**-20).half()]
    scale = 2.0**10
    answer = student(good, scale, 1, 4)
    assert_type(answer, tuple, "your result")
    gradients, new_scale, good_steps = answer
    assert_type(gradients, list, "your gradients")
    for mine, given in zip(gradients, good, strict=True):
        assert_close(
            mine,
            given.float() / scale,
            name="your gradient",
            mistakes={
                "you do not divide by the scale": given.float(),
                "you multiply by the scale; divide": given.float() * scale,
            },
        )
        if mine.dtype != torch.float32:
            raise AssertionError(f"your gradient is {mine.dtype}; return torch.float32")
    small = student(tiny, scale, 1, 4)[0][0]
    assert_close(
        small / 2.0**-30,
        torch.ones(3),
        name="2⁻³⁰, as a share of itself",
        mistakes={"you divide in float16, where 2⁻³⁰ is 0; cast to float32 first": torch.zeros(3)},
    )
    assert_equal(
        (float(new_scale), good_steps), (scale, 2), name="scale and good steps after the second",
        mistakes={"you do not count the good step": (scale, 1),
                  "you double the scale at every good step": (scale * 2, 2)},
    )  # fmt: skip
    grown = student(good, scale, 3, 4)
    assert_equal(
        (float(grown[1]), grown[2]), (scale * 2, 0), name="scale and good steps after 4 of 4",
        mistakes={
            "the scale grows one step too late: this was good step number `interval`": (scale, 4),
            "counting starts again at 0 when the scale has doubled": (scale * 2, 4),
        },
    )  # fmt: skip
    assert_close(
        grown[0][0],
        good[0].float() / scale,
        name="the gradient of the step that doubles the scale",
        mistakes={
            "you divide by the new scale; this gradient was made with the old one": good[0].float()
            / (2 * scale)
        },
    )
    for bad in (math.inf, -math.inf, math.nan):
        broken = [good[0], torch.tensor([1.0, bad, 2.0]).half()]
        result = student(broken, scale, 3, 4)
        if result[0] is not None:
            raise AssertionError(
                f"a gradient with {bad} in its last tensor must give None: look at all of them, "
                "for both signs of infinity and for NaN"
            )
        assert_equal(
            (float(result[1]), result[2]), (scale / 2, 0), name=f"scale and good steps after {bad}",
            mistakes={
                "after an overflow the scale must fall": (scale, 0),
                "after an overflow counting starts again at 0": (scale / 2, 3),
                "an overflow is no good step": (scale / 2, 4),
            },
        )  # fmt: skip
    for given in (good[0], good[0].float()):  # casting to float32 copies the first only
        assert_unchanged(lambda g: student([g], scale, 1, 4), given, name="unscaled")
    refuses(student, good, 0.0, 1, 4, words="scale")


def safe_loss(student: Callable, *, seed: int = 0) -> None:
    """Easy inputs, then each source of NaN alone, then gradients."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 5, generator=random).half()
    targets = torch.randint(5, (7,), generator=random)
    keep = torch.tensor([True, True, False, True, True, False, True])
    right = torch.nn.functional.cross_entropy(logits[keep].float(), targets[keep])
    answer = student(logits, targets, keep)
    assert_shape(answer, (), "your loss")
    everything = torch.nn.functional.cross_entropy(logits.float(), targets)
    assert_close(
        answer.float(),
        right,
        name="your loss",
        mistakes={
            "you average over all positions; only the kept ones count": everything,
            "you divide by all positions; divide by those that are kept": right * 5 / 7,
            "you return the sum, not the mean": right * 5,
        },
        rtol=1e-3,
    )
    large = 200 * logits
    _finite(student(large, targets, keep), "large logits", "above x = 11, eˣ overflows: subtract "
            "the largest logit first, as logsumexp does")  # fmt: skip
    assert_close(
        student(large, targets, keep).float(),
        torch.nn.functional.cross_entropy(large[keep].float(), targets[keep]),
        name="your loss on large logits",
        mistakes={
            "clamping the logits changes the loss; subtract the largest instead": (
                torch.nn.functional.cross_entropy(large[keep].float().clamp(max=11), targets[keep])
            ),
        },
        rtol=1e-3,
    )
    nothing = torch.zeros(7, dtype=torch.bool)
    empty = student(logits, targets, nothing)
    _finite(empty, "nothing kept", "0 / 0: divide by at least 1")
    assert_close(empty.float(), torch.tensor(0.0), name="your loss with nothing kept")
    for bad in (math.inf, -math.inf, math.nan):
        broken = logits.masked_fill(~keep[:, None], bad)
        loss = student(broken, targets, keep)
        _finite(loss, f"{bad} where nothing is kept", "∞ · 0 and NaN · 0 are NaN: replace the "
                "numbers (masked_fill, torch.where), or leave the positions out")  # fmt: skip
        assert_close(loss.float(), right, name=f"your loss with {bad} where nothing is kept")
        leaf = broken.clone().requires_grad_()
        student(leaf, targets, keep).backward()
        if leaf.grad is None or not leaf.grad.isfinite().all():
            raise AssertionError(
                f"the gradient is NaN with {bad} where nothing is kept: replace the *logits* "
                "before anything is computed from them, not only the losses"
            )
        if leaf.grad[~keep].any():
            raise AssertionError("positions that are not kept get a gradient; it must be 0")
    if answer.dtype != torch.float32:
        raise AssertionError(f"your loss is {answer.dtype}; return torch.float32")
    assert_same_gradients(
        lambda x: student(x.half(), targets, keep),
        lambda x: torch.nn.functional.cross_entropy(x.half()[keep].float(), targets[keep]),
        (logits.float(),),
        name="safe_loss",
        rtol=1e-2,
        atol=1e-3,
    )


def _finite(loss: Tensor, case: str, advice: str) -> None:
    if not loss.isfinite():
        raise AssertionError(f"the loss is {loss.item()} with {case}: {advice}")


def run_in_segments(
    student: Callable, peaks: Mapping[int, int], best_k: int, reason: str, *, seed: int = 0
) -> None:
    """Values, gradients and what is kept, then the measurement and the judgement."""
    random = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(6, 6, generator=random) / 3 for _ in range(7)]
    layers = [lambda x, m=m: torch.tanh(x @ m) for m in matrices]
    x = torch.randn(3, 6, generator=random)

    def plain(x: Tensor, count: int = 7) -> Tensor:
        for layer in layers[:count]:
            x = layer(x)
        return x

    for k in (1, 3, 7, 10):
        assert_close(
            student(layers, x, k),
            plain(x),
            name=f"your result for k={k}",
            mistakes={
                "the last segment, shorter than k, is missing": plain(x, 7 // k * k),
                "the first layer of each segment is all that runs": _every(layers, x, k),
            },
        )
        assert_same_gradients(
            lambda x, k=k: student(layers, x, k), plain, (x,), name=f"run_in_segments, k={k},"
        )
        kept = _n_kept(lambda k=k: student(layers, x.clone().requires_grad_(), k))
        segments = -(-7 // k)
        if kept > segments:
            raise AssertionError(
                f"for k={k} your forward pass keeps {kept} tensors, not {segments}: call "
                "checkpoint once for each segment, on all of its layers"
            )
    refuses(student, layers, x, 0, words="k")
    assert_type(peaks, dict, "peaks")
    assert_equal(set(peaks), {1, 2, 4, 8, 16, 32}, name="the keys of peaks")
    ratio = peaks[1] / peaks[8]
    if not 2.5 < ratio < 5:
        raise AssertionError(
            f"your peak for k=1 is {ratio:.1f} times that for k=8; expected 3 to 4. Measure with "
            "peak_bytes(k), after run_in_segments works"
        )
    assert_equal(
        best_k,
        8,
        name="best_k",
        mistakes={
            "k = 1 keeps the input of every layer: look at your peaks again": 1,
            "k = 32 keeps few inputs, but the inside of 32 layers at once": 32,
        },
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): every layer is computed again exactly once, whatever k is": "a",
            "(c): then k = 32 would have the lowest peak; it does not": "c",
        },
    )


def _every(layers, x: Tensor, k: int) -> Tensor:
    for layer in layers[::k]:
        x = layer(x)
    return x


def _n_kept(forward: Callable[[], Tensor]) -> int:
    """How many different tensors a forward pass keeps outside its checkpointed segments."""
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        forward()
    return len({id(tensor) for tensor in kept})
