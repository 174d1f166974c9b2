"""Checks for the exercises of lesson 07. Each names the mistake it recognises.

B batch, H query heads, K key/value heads, T time, D head size, C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.model.attention import attention
from minillm.model.config import Rope, RopeScaling
from minillm.model.masks import causal_mask
from minillm.model.positions import rope_angles, rope_frequencies, rotate, rotate_interleaved

ROTATIONS = {"half": rotate, "interleaved": rotate_interleaved}


def rope(student: Callable, *, base: float = 50.0, seed: int = 0) -> None:
    """Values and gradients of both pairings, and that scores know only the distance."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 5, 6, generator=random)
    D = x.shape[-1]

    def reference(x: Tensor, pairs: str, *, start=0, exponent=2, clockwise=False) -> Tensor:
        frequencies = base ** (-exponent * torch.arange(D // 2) / D)
        angles = torch.arange(start, start + x.shape[2])[:, None] * frequencies
        sin = -angles.sin() if clockwise else angles.sin()
        return ROTATIONS[pairs](x, angles.cos(), sin)

    for pairs in ("half", "interleaved"):
        other = "interleaved" if pairs == "half" else "half"
        result = student(x, base, pairs)
        assert_shape(result, x.shape, f"rope(x, base, {pairs!r})")
        assert_close(
            result,
            reference(x, pairs),
            name=f"rope(x, base, {pairs!r})",
            mistakes={
                f"with pairs={pairs!r} you join the channels of {other!r}": reference(x, other),
                "your positions start at 1; the first token does not turn": reference(
                    x, pairs, start=1
                ),
                "you turn clockwise: a becomes a·cos − b·sin": reference(x, pairs, clockwise=True),
                "your exponent is −i/D; pair i turns by base^(−2i/D)": reference(
                    x, pairs, exponent=1
                ),
                "you count positions along the heads; time is the third axis": lambda p=pairs: (
                    reference(x.transpose(1, 2), p).transpose(1, 2)
                ),
            },
        )
        assert_same_gradients(
            lambda x, p=pairs: student(x, base, p),
            lambda x, p=pairs: reference(x, p),
            (x,),
            name="rope",
        )
        assert_unchanged(lambda x, p=pairs: student(x, base, p), x, name="rope")
    refuses(student, x[..., :5], base, "half", words="5")
    refuses(student, x, base, "thirds", words="thirds")


def alibi(student: Callable, *, n_heads: int = 4, T: int = 6) -> None:
    """The bias of every head, query and key."""
    distance = torch.arange(T)[:, None] - torch.arange(T)
    future = distance < 0

    def bias(exponents: list[float], sign: float = -1.0, hide: float = -math.inf) -> Tensor:
        slopes = torch.tensor([2.0**e for e in exponents])[:, None, None]
        return (sign * slopes * distance).masked_fill(future, hide)

    steps = [-8 * (h + 1) / n_heads for h in range(n_heads)]
    result = student(n_heads, T)
    assert_shape(result, (n_heads, T, T), f"alibi({n_heads}, {T})")
    assert_close(
        result,
        bias(steps),
        name=f"alibi({n_heads}, {T})",
        mistakes={
            "your bias rewards distance: subtract slope times distance": bias(steps, sign=1.0),
            "your first slope is 1; it is 2^(−8/H)": bias(
                [-8 * h / n_heads for h in range(n_heads)]
            ),
            "your slopes are 1/2, 1/4, 1/8, … for any H; they end at 2^(−8) for any H": bias(
                [-(h + 1.0) for h in range(n_heads)]
            ),
            "the future is open: keys after the query (s > t) need −inf, not 0": bias(
                steps, hide=0.0
            ),
            "the future is open: a key that comes later needs −inf, not a penalty": (
                -torch.tensor([2.0**e for e in steps])[:, None, None] * distance.abs()
            ),
            "the future is open, and even rewarded: it needs −inf": (
                -torch.tensor([2.0**e for e in steps])[:, None, None] * distance
            ),
            "you hide the past: rows are queries, columns are keys": bias(steps).mT,
        },
    )
    refuses(student, 6, T, words="6")


class _Copies(TorchDispatchMode):
    """Raises where new memory as large as q is filled from keys or values alone.

    It sits below PyTorch's own Python and C++ code, so it also sees what a product that broadcasts
    does unseen. What was made with q, such as scores, may have any size.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor):
        super().__init__()
        self.n_most = q.numel()
        self.sources = {_memory(q): {"q"}, _memory(k): {"k"}, _memory(v): {"v"}}
        self.alive: list[Tensor] = []  # so that no address is used twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        sources = set().union(*(self.sources.get(_memory(x), ()) for x in read))
        for made in tree_leaves(result):
            if not isinstance(made, Tensor):
                continue
            self.alive.append(made)
            self.sources.setdefault(_memory(made), set()).update(sources)
            size = made.untyped_storage().nbytes() // made.element_size()
            if sources and sources <= {"k", "v"} and size >= self.n_most:
                raise AssertionError(
                    "by_groups still copies keys or values, if only inside a product that "
                    "broadcasts; fold the H/K heads of a group into the time axis: q as "
                    "(B, K, H/K · T, D)"
                )
        return result


def _memory(x: Tensor) -> int:
    """The address of a tensor's memory, the same for all its views."""
    return x.untyped_storage().data_ptr()


def grouped(by_copies: Callable, by_groups: Callable, *, seed: int = 0) -> None:
    """Both forms against a loop over heads; the second must not copy keys or values."""
    random = torch.Generator().manual_seed(seed)
    B, H, K, T, D = 3, 6, 2, 5, 4
    q = torch.randn(B, H, T, D, generator=random)
    k, v = torch.randn(2, B, K, T, D, generator=random)
    past = causal_mask(torch.arange(T), T)

    def loop(q, k, v, mask=past, scale=1.0, key_of=lambda h: h // (H // K)):
        heads = [attention(scale * q[:, h], k[:, key_of(h)], v[:, key_of(h)], mask)
                 for h in range(H)]  # fmt: skip
        return torch.stack(heads, dim=1)

    for name, student in (("by_copies", by_copies), ("by_groups", by_groups)):
        result = student(q, k, v)
        assert_shape(result, q.shape, f"{name}(q, k, v)")
        assert_close(
            result,
            loop(q, k, v),
            name=f"{name}(q, k, v)",
            mistakes={
                "neighbouring query heads must share a key head: h uses h // (H/K), not h % K": (
                    loop(q, k, v, key_of=lambda h: h % K)
                ),
                "your heads look into the future": loop(q, k, v, mask=None),
                "your scores are not divided by √D": loop(q, k, v, scale=D**0.5),
                "all your heads use the first key/value head": loop(q, k, v, key_of=lambda h: 0),
            },
        )
        assert_same_gradients(student, loop, (q, k, v), name=name)
        refuses(student, q[:, :5], k, v, words="5")
    k, v = k.clone(), v.clone()  # drawn together: now each has memory of its own
    with torch.no_grad(), _Copies(q, k, v):
        by_groups(q, k, v)


def convert(student: Callable, *, seed: int = 0) -> None:
    """The order of the rows, and that the scores stay what they were."""
    random = torch.Generator().manual_seed(seed)
    H, K, D, C = 4, 2, 6, 5
    w = torch.randn((H + 2 * K) * D, C, generator=random)

    def reorder(part: Tensor, *, back: bool = False, size: int = D) -> Tensor:
        shape = (2, size // 2) if back else (size // 2, 2)
        return part.reshape(-1, *shape, C).transpose(1, 2).reshape(part.shape)

    n_turned = (H + K) * D
    right = torch.cat((reorder(w[:n_turned]), w[n_turned:]))
    result = student(w.clone(), H, K)
    assert_shape(result, w.shape, "convert(w_qkv, n_heads, n_kv_heads)")
    assert_close(
        result,
        right,
        name="your rows",
        mistakes={
            "you convert the other way: the rows lie as (pair, member) and must come out as "
            "(member, pair)": torch.cat((reorder(w[:n_turned], back=True), w[n_turned:])),
            "you convert the other way, and you reorder the values too": reorder(w, back=True),
            "you reorder the values too: they are not rotated": reorder(w),
            "you forgot the keys: they are rotated like the queries": torch.cat(
                (reorder(w[: H * D]), w[H * D :])
            ),
            "you reorder across heads; each head has D rows of its own": torch.cat(
                (
                    reorder(w[: H * D], size=H * D),
                    reorder(w[H * D : n_turned], size=K * D),
                    w[n_turned:],
                )
            ),
        },
    )
    x = torch.randn(3, 7, C, generator=random)
    rotation = rope_angles(torch.arange(7), D, Rope(base=20.0))

    def scores(weights: Tensor, turn: Callable) -> Tensor:
        q, k, _ = (x @ weights.T).split([H * D, K * D, K * D], dim=-1)
        q, k = (y.view(3, 7, -1, D).transpose(1, 2) for y in (q, k))
        return turn(q, *rotation) @ turn(k, *rotation).repeat_interleave(H // K, dim=1).mT

    before, after = scores(w, rotate_interleaved), scores(result, rotate)
    assert_close(after, before, name="the scores with converted weights")
    assert_unchanged(lambda w: student(w, H, K), w, name="convert")


def lost(student: Callable, counts: dict, advice: str, *, dim: int = 64) -> None:
    """How many pairs meet new angles, and which scaling to use without training."""
    base, trained, tested = 10_000.0, 2048, 8192

    def frequencies(scaling: RopeScaling | None) -> Tensor:
        return rope_frequencies(dim, Rope(base=base, scaling=scaling))

    before = frequencies(None)
    scalings = {
        "none": None,
        "linear": RopeScaling("linear", 4.0),
        "ntk": RopeScaling("ntk", 4.0),
        "yarn": RopeScaling("yarn", 4.0, trained),
    }
    incomplete = trained * before < 2 * math.pi
    right = {}
    for name, scaling in scalings.items():
        after = frequencies(scaling)
        farther = tested * after > 1.01 * trained * before
        right[name] = int((incomplete & farther).sum())
        count = student(before, after, trained, tested)
        assert_type(count, int, "lost_pairs(…)")
        assert_equal(
            count,
            right[name],
            name=f"lost_pairs(…) with scaling {name!r}",
            mistakes={
                "you count pairs that went all the way round in training: they know all angles": (
                    int(farther.sum())
                ),
                "you count every pair that never went round, also those that do not turn farther "
                "than before": int(incomplete.sum()),
                "you look for a full turn in the tested text; what counts is the training": int(
                    ((tested * after < 2 * math.pi) & farther).sum()
                ),
                "you compare frequencies; what counts is the largest angle, length times "
                "frequency": int((incomplete & (after > 1.01 * before)).sum()),
            },
        )
    if dim != 64:
        return
    assert_equal(counts, right, name="your table `lost`")
    assert_type(advice, str, "advice")
    wrong = {
        "none": "without scaling the slow pairs meet angles they have never seen",
        "linear": "linear slows the fast pairs too, and neighbours become hard to tell apart: "
        "see the loss in the lesson",
        "ntk": "ntk still loses some pairs: your own table says so",
    }
    if advice in wrong:
        raise AssertionError(f"advice = {advice!r}: {wrong[advice]}")
    assert_equal(advice, "yarn", name="advice")
