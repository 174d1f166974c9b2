"""Checks for the exercises of lesson 18. Each names the mistake it recognises.

B batch, C inputs of a layer, D outputs, r rank.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)


def lora_forward(student: Callable, *, seed: int = 0) -> None:
    """Values, gradients and a frozen weight, with C ≠ D and a rank that is neither 1 nor alpha."""
    random = torch.Generator().manual_seed(seed)
    x, weight, a, b = _drawn(random, (4, 5), (7, 5), (3, 5), (7, 3))
    answer = student(x, weight, a, b, 6.0)
    plain, update = x @ weight.T, x @ a.T @ b.T
    assert_shape(answer, (4, 7), "your output")
    assert_close(
        answer,
        plain + 2 * update,
        name="your output",
        mistakes={
            "your update is not scaled: multiply it by α / r": plain + update,
            "your update is scaled by α alone; divide by the rank": plain + 6 * update,
            "your scale is α / √r, the rank-stabilised one; here it is α / r": (
                plain + 6 / 3**0.5 * update
            ),
            "your scale divides by the number of inputs; the rank is the number of rows of a": (
                plain + 6 / 5 * update
            ),
            "you scale the whole output; only the update is scaled": 2 * (plain + update),
            "the layer's own output W x is missing": 2 * update,
            "the update is missing": plain,
        },
    )
    frozen = weight.clone().requires_grad_()
    moving = x.clone().requires_grad_()
    student(moving, frozen, a, b, 6.0).sum().backward()
    if frozen.grad is not None:
        raise AssertionError("a gradient reaches the weight: the layer is frozen, detach it")
    assert_same_gradients(
        lambda x, a, b: student(x, weight, a, b, 6.0),
        lambda x, a, b: F.linear(x, weight) + 2 * F.linear(F.linear(x, a), b),
        (x, a, b),
        name="lora_forward",
    )
    with _ThickProduct(a, weight):
        student(x, weight, a, b, 6.0)
    refuses(student, x, weight, a, b[:, :2], 6.0, words="rank")


class _ThickProduct(TorchFunctionMode):
    """Raises when two matrices, one of them ``a``, give one of the weight's shape."""

    def __init__(self, a: Tensor, weight: Tensor):
        super().__init__()
        self.thin = (a.shape, a.T.shape)
        self.thick = (weight.shape, weight.T.shape)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        shapes = [value.shape for value in args if isinstance(value, Tensor)]
        thick = isinstance(result, Tensor) and result.shape in self.thick
        if thick and len(shapes) > 1 and any(shape in self.thin for shape in shapes):
            raise AssertionError("you build the matrix B A; apply a first, then b")
        return result


def merge_updates(student: Callable, *, seed: int = 0) -> None:
    """Two updates of different rank and alpha, one of them, and none."""
    random = torch.Generator().manual_seed(seed)
    weight, a, b, a2, b2 = _drawn(random, (7, 5), (3, 5), (7, 3), (2, 5), (7, 2))
    first, second = b @ a, b2 @ a2
    updates = [(a, b, 6.0), (a2, b2, 8.0)]
    answer = student(weight.clone(), updates)
    assert_shape(answer, (7, 5), "your merged weight")
    assert_close(
        answer,
        weight + 2 * first + 4 * second,
        name="your merged weight",
        mistakes={
            "your updates are not scaled by α / r": weight + first + second,
            "your updates are scaled by α; divide each by its rank": weight
            + 6 * first
            + 8 * second,
            "every update has its own rank: you divide all by the first one's": (
                weight + 2 * first + 8 / 3 * second
            ),
            "you keep only the last update": weight + 4 * second,
            "you keep only the first update": weight + 2 * first,
            "you average the updates; they add up": weight + (2 * first + 4 * second) / 2,
            "the weight itself is missing": 2 * first + 4 * second,
        },
    )
    assert_unchanged(lambda w: student(w, updates), weight, name="merge_updates")
    none = student(weight, [])
    assert_close(none, weight, name="your merged weight without updates")
    if none is weight:
        raise AssertionError("without updates you return the weight itself; return a copy")
    refuses(student, weight, [(a[:, :4], b, 6.0)], words="shape")


def dora_weight(student: Callable, *, seed: int = 0) -> None:
    """Values, and a gradient that does not flow through the norm."""
    random = torch.Generator().manual_seed(seed)
    weight, delta = _drawn(random, (6, 4), (6, 4))
    lengths = torch.rand(6, generator=random) + 0.5
    direction = weight + delta
    norm = direction.norm(dim=1, keepdim=True)
    answer = student(weight, delta, lengths)
    assert_shape(answer, (6, 4), "your weight")
    assert_close(
        answer,
        lengths[:, None] * direction / norm,
        name="your weight",
        mistakes={
            "you divide by the length of W; it must be that of W + ΔW": (
                lengths[:, None] * direction / weight.norm(dim=1, keepdim=True)
            ),
            "your norm is that of the columns; every row has a length": (
                lengths[:, None] * direction / direction.norm(dim=0, keepdim=True)
            ),
            "your norm is that of the whole matrix; every row has its own": (
                lengths[:, None] * direction / direction.norm()
            ),
            "you do not divide by the norm: only the direction of a row is kept": (
                lengths[:, None] * direction
            ),
            "you divide by the squared norm; where is the root?": (
                lengths[:, None] * direction / norm.square()
            ),
            "the lengths are missing: your rows have length 1": direction / norm,
        },
    )
    assert_same_gradients(
        student,
        lambda w, d, m: m[:, None] * (w + d) / (w + d).detach().norm(dim=1, keepdim=True),
        (weight, delta, lengths),
        name="dora_weight",
        mistakes={
            "a gradient flows through the norm; it counts as a constant": (
                lambda w, d, m: m[:, None] * (w + d) / (w + d).norm(dim=1, keepdim=True)
            ),
            "you detach the whole direction; only the norm is a constant": (
                lambda w, d, m: m[:, None] * (w + d).detach() / norm + 0 * (w + d)
            ),
        },
    )
    opposite = delta.clone()
    opposite[2] = -weight[2]
    refuses(student, weight, opposite, lengths, words="row")


def fixed_merge(student: Callable, *, seed: int = 1) -> None:
    """The update scaled exactly once, where α / r is not 1."""
    random = torch.Generator().manual_seed(seed)
    weight, a, b = _drawn(random, (7, 5), (3, 5), (7, 3))
    update = b @ a
    answer = student(weight.clone(), a, b, 6.0)
    assert_shape(answer, (7, 5), "your merged weight")
    assert_close(
        answer,
        weight + 2 * update,
        name="your merged weight",
        mistakes={
            "the bug is still there: the update is scaled twice": weight + 4 * update,
            "now the update is not scaled at all": weight + update,
            "you scale by α and forget the rank": weight + 6 * update,
            "you scale both a and b by √α: the rank is missing": weight + 6 * update,
            "you scale the weight, too": 2 * (weight + update),
        },
    )
    x = torch.randn(4, 5, generator=random)
    assert_close(
        F.linear(x, student(weight, a, b, 6.0)),
        F.linear(x, weight) + 2 * F.linear(F.linear(x, a), b),
        name="the output of your merged layer",
    )
    assert_unchanged(lambda w: student(w, a, b, 6.0), weight, name="fixed_merge")


def gain_within(student: Callable, best: str, plan: str, *, seed: int = 0) -> None:
    """The measurement on a matrix that is not square, and the judgement."""
    random = torch.Generator().manual_seed(seed)
    assert_close(
        student(torch.diag(torch.tensor([2.0, 1.0])), 1), 0.8, name="the share of diag(2, 1) at 1",
        mistakes={
            "you add up the singular values; add up their squares": 2 / 3,
            "you return the share that is lost: take the largest singular values": 0.2,
            "you return a root: the share is of squares, not of lengths": 0.8**0.5,
        },
    )  # fmt: skip
    (change,) = _drawn(random, (9, 6))
    squares = torch.linalg.svdvals(change).square()
    for rank in (1, 2, 6, 8):
        answer = student(change, rank)
        assert_type(answer, float, "your share")
        right = (squares[:rank].sum() / squares.sum()).item()
        assert_close(
            answer,
            right,
            name=f"your share at rank {rank}",
            mistakes={
                "your sum is one direction short": (
                    lambda rank=rank: (squares[: rank - 1].sum() / squares.sum()).item()
                ),
                "your sum has one direction too many": (
                    lambda rank=rank: (squares[: rank + 1].sum() / squares.sum()).item()
                ),
            },
        )
    assert_close(student(torch.zeros(3, 4), 1), 1.0, name="your share of a change of zeros")
    refuses(student, change, 0, words="rank")
    assert_equal(
        best,
        "out",
        name="best",
        mistakes={
            "q is caught best at rank 1; at rank 4 another is ahead": "q",
            "v was ahead at rank 2; at rank 4 another is": "v",
        },
    )
    assert_equal(
        plan,
        "all",
        name="plan",
        mistakes={
            "the best-caught matrix is only a part of the total: weigh each share by ‖ΔW‖²": "one"
        },
    )


def _drawn(random: torch.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(*shape, generator=random) for shape in shapes]
