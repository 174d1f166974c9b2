"""Checks for the exercises of lesson 04. Each names the mistake it recognises.

B batch, T time, C channels, H heads, D head size. Sizes are odd and all different, so that a
swapped axis cannot pass unnoticed.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer


def _causal(T: int) -> Tensor:
    return torch.ones(T, T).tril().bool()


def single_head(student: Callable, *, seed: int = 0) -> None:
    """Values and gradients of one head, with and without the causal mask."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 5, 8, generator=random)
    w_q, w_k, w_v = (torch.randn(8, 6, generator=random) for _ in range(3))

    def head(x, w_q, w_k, w_v, causal=True, *, divisor=6**0.5, swap=False, dim=-1, late=False):
        q, k, v = x @ w_q, x @ w_k, x @ w_v
        scores = (k @ q.mT if swap else q @ k.mT) / divisor
        if causal and not late:
            scores = scores.masked_fill(~_causal(x.shape[1]), float("-inf"))
        weights = scores.softmax(dim)
        return (weights * _causal(x.shape[1]) if causal and late else weights) @ v

    inputs = (x, w_q, w_k, w_v)
    assert_shape(student(*inputs, causal=True), (3, 5, 6), "your output")
    for causal in (False, True):
        assert_close(
            student(*inputs, causal=causal),
            head(*inputs, causal),
            name=f"your output with causal={causal}",
            mistakes={
                "your scores are divided by D, not by √D": head(*inputs, causal, divisor=6),
                "your scores are not divided by √D": head(*inputs, causal, divisor=1),
                "your √D is taken of the channels C: D is the last size of w_q": head(
                    *inputs, causal, divisor=8**0.5
                ),
                "your softmax runs over the queries; each row must share out the keys (dim=-1)": (
                    lambda causal=causal: head(*inputs, causal, dim=-2)
                ),
                "your scores are k·q, the transpose of q·k": head(*inputs, causal, swap=True),
                "your head ignores causal: it looks " + ("ahead" if causal else "back only"): head(
                    *inputs, not causal
                ),
                "you mask after the softmax: the future still stands in its denominator": head(
                    *inputs, causal, late=True
                ),
            },
        )
    assert_same_gradients(student, head, inputs, name="single_head")
    assert_unchanged(student, *inputs, name="single_head")
    refuses(student, x, w_q, w_k[:, :5], w_v, words="w_k")


def multi_head(student: Callable, *, seed: int = 0) -> None:
    """Values and gradients against PyTorch's nn.MultiheadAttention."""
    random = torch.Generator().manual_seed(seed)
    B, T, C, H = 3, 5, 12, 4
    x = torch.randn(B, T, C, generator=random)
    w_qkv = torch.randn(3 * C, C, generator=random) / 3
    w_out = torch.randn(C, C, generator=random) / 3

    def reference(x, w_qkv, w_out):
        return F.multi_head_attention_forward(
            x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), C, H, w_qkv, None, None, None,
            False, 0.0, w_out, None, attn_mask=~_causal(T), need_weights=False,
        )[0].transpose(0, 1)  # fmt: skip

    def by_hand(layout="h d", divisor=(C // H) ** 0.5, w=w_out, causal=True, merge="right"):
        q, k, v = (x @ w_qkv.T).chunk(3, dim=-1)
        if layout == "h d":
            q, k, v = (y.view(B, T, H, -1).transpose(1, 2) for y in (q, k, v))
        elif layout == "d h":
            q, k, v = (y.view(B, T, -1, H).permute(0, 3, 1, 2) for y in (q, k, v))
        else:
            q, k, v = (y.reshape(B, H, T, -1) for y in (q, k, v))
        scores = q @ k.mT / divisor
        if causal:
            scores = scores.masked_fill(~_causal(T), float("-inf"))
        mixed = scores.softmax(-1) @ v
        if merge == "right":
            mixed = mixed.transpose(1, 2)
        return mixed.reshape(B, T, C) @ w

    assert_close(
        student(x, w_qkv, w_out, H),
        reference(x, w_qkv, w_out),
        name="your output",
        mistakes={
            "you cut the channels as (d h): the channels of a head lie side by side, (h d)": (
                by_hand("d h", w=w_out.T)
            ),
            "you reshape straight to (B, H, T, D), which mixes positions; first (B, T, H, D)": (
                by_hand("mixed", w=w_out.T)
            ),
            "you join the heads without moving time in front of them again": by_hand(
                w=w_out.T, merge="wrong"
            ),
            "you multiply with w_out, not with its transpose (rows are outputs)": by_hand(),
            "you forgot w_out: the heads never mix": by_hand(w=torch.eye(C)),
            "you divide by √C; each head has only D = C / H channels": by_hand(
                w=w_out.T, divisor=C**0.5
            ),
            "your heads look into the future": by_hand(w=w_out.T, causal=False),
        },
    )
    assert_same_gradients(
        lambda *inputs: student(*inputs, H), reference, (x, w_qkv, w_out), name="multi_head"
    )
    refuses(student, x, w_qkv, w_out, 5, words="5")


def layer_norm(student: Callable, *, seed: int = 0, eps: float = 0.1) -> None:
    """Values and gradients against torch, with an eps large enough to show."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 5, 7, generator=random) * 2 + 1
    weight, bias = torch.randn(2, 7, generator=random)

    def reference(x, weight, bias):
        return F.layer_norm(x, (7,), weight, bias, eps)

    def by_hand(correction=0, inside=True, dim=-1, centre=True):
        mean = x.mean(dim, keepdim=True)
        variance = x.var(dim, keepdim=True, correction=correction)
        spread = (variance + eps).sqrt() if inside else variance.sqrt() + eps
        return (x - mean if centre else x) / spread * weight + bias

    assert_close(
        student(x, weight, bias, eps),
        reference(x, weight, bias),
        name="your output",
        mistakes={
            "your variance divides by C − 1; layer norm divides by C (correction=0)": by_hand(1),
            "your eps is added outside the square root": by_hand(inside=False),
            "your statistics run over time; each vector is normalised alone (dim=-1)": by_hand(
                dim=1
            ),
            "you do not subtract the mean": by_hand(centre=False),
            "you forgot weight and bias": F.layer_norm(x, (7,), eps=eps),
            "you use an eps of your own": F.layer_norm(x, (7,), weight, bias, 1e-5),
        },
    )
    assert_same_gradients(
        lambda *inputs: student(*inputs, eps), reference, (x, weight, bias), name="layer_norm"
    )
    assert_unchanged(lambda *i: student(*i, eps), x, weight, bias, name="layer_norm")


def ragged_mask(student: Callable, *, lengths: tuple[int, ...] = (3, 1, 5)) -> None:
    """Causal masks of a right-padded batch."""
    T, n = max(lengths), torch.tensor(lengths)
    real = torch.arange(T) < n[:, None]
    both = real[:, None, :] & real[:, :, None] & _causal(T)
    right = both | torch.eye(T, dtype=torch.bool)
    mask = student(n)
    assert_shape(
        mask,
        (len(lengths), 1, T, T),
        "your mask",
        mistakes={"your mask lacks the axis of the heads: (B, 1, T, T)": right.shape},
    )
    assert_close(
        mask,
        right[:, None],
        name="your mask",
        mistakes={
            "your mask is upside down: True means 'may look'": ~right[:, None],
            "your mask lets a word look into the future": (
                (real[:, None, :] & real[:, :, None]) | torch.eye(T, dtype=torch.bool)
            )[:, None],
            "real words look at padding": _causal(T).expand_as(right)[:, None],
            "rows of padding see nothing: their softmax is NaN; let them look at themselves": both[
                :, None
            ],
            "rows of padding may look at real words; they should see only themselves": (
                (real[:, None, :] & _causal(T)) | torch.eye(T, dtype=torch.bool)
            )[:, None],
        },
    )
    refuses(student, torch.tensor([2, 0]), words="length")


def count_parameters(student: Callable) -> None:
    """Against models that were really built (on the meta device)."""
    shapes = [(61, 24, 3, 17), (50257, 768, 12, 1024), (50257, 1600, 48, 1024)]
    for V, C, n, T in shapes:
        with torch.device("meta"):
            right = Transformer(
                gpt2_config(V, d_model=C, n_layers=n, n_heads=1, max_length=T)
            ).n_parameters()
        answer = student(V, C, n, T)
        assert_type(answer, int, "your count")
        assert_equal(
            answer,
            right,
            name=f"your count for V={V}, C={C}, {n} layers, T={T}",
            mistakes={
                "you count the output matrix; it is tied to the embedding": right + V * C,
                "you forgot the position embedding": right - T * C,
                "you forgot the last norm": right - 2 * C,
                "you forgot the biases of the four matrices": right - n * 9 * C,
                "you forgot the two norms of each block": right - n * 4 * C,
                "you count only three matrices of attention; the output projection is one too": (
                    right - n * (C * C + C)
                ),
            },
        )


def fixed_attention(student: Callable, *, seed: int = 1) -> None:
    """The repaired function, on a batch that shows each of the tempting repairs to be wrong."""
    random = torch.Generator().manual_seed(seed)
    B, T, H, D = 3, 5, 4, 6
    q, k, v = torch.randn(3, B, T, H * D, generator=random)

    def heads(y):
        return y.view(B, T, H, D).transpose(1, 2)

    def run(split=heads, merge=lambda y: y.transpose(1, 2), dim=-1):
        scores = split(q) @ split(k).mT / math.sqrt(D)
        scores = scores.masked_fill(~_causal(T), float("-inf"))
        return merge(scores.softmax(dim) @ split(v)).reshape(B, T, H * D)

    def mixed(y):
        return y.reshape(B, H, T, D)

    assert_close(
        student(q, k, v, H),
        run(),
        name="your output",
        mistakes={
            "the bug is still there: view(B, H, T, D) deals out positions, not channels": run(
                mixed, lambda y: y
            ),
            "you repaired the way in, but the heads are joined without moving time back": run(
                merge=lambda y: y
            ),
            "you repaired the way out only: the heads are still cut wrongly": run(mixed),
        },
    )
    moved = q.clone(), k.clone(), v.clone()
    for y in moved:
        y[:, -1] += 1
    if not torch.allclose(student(*moved, H)[:, :-1], student(q, k, v, H)[:, :-1]):
        raise AssertionError("the past moves when the last position changes: the mask is gone")


def saturation(
    largest_share: Callable, first_saturated: int, remedy: str, *, seed: int = 0
) -> None:
    """The measurement, within the noise of a sample, and the judgement drawn from it."""
    for head_size in (4, 64):
        for scaled in (True, False):
            yours = largest_share(head_size, scaled, torch.Generator().manual_seed(seed))
            assert_type(yours, float, "the largest share")
            assert_close(
                yours,
                _mean_largest_share(head_size, scaled),
                name=f"the largest share at D={head_size}, scaled={scaled}",
                rtol=0.05,
                atol=0.02,
                mistakes={
                    "you return the mean share, which is always 1/64": 1 / 64,
                    "you treat scaled=True and scaled=False alike or the wrong way round": (
                        _mean_largest_share(head_size, not scaled)
                    ),
                    "you return the largest score, before the softmax": (
                        _mean_largest_share(head_size, scaled, softmax=False)
                    ),
                },
            )
    sizes = [2, 4, 8, 16, 32, 64]
    right = next(s for s in sizes if _mean_largest_share(s, False) > 0.5)
    assert_equal(
        first_saturated,
        right,
        name="first_saturated",
        mistakes={
            "at that size the largest share is not yet over one half": sizes[
                sizes.index(right) - 1
            ],
        },
    )
    assert_equal(
        remedy,
        "b",
        name="remedy",
        mistakes={
            "(a) shrinks the scores by a fixed factor; a larger D saturates all the same": "a",
            "(c) a larger step does not help where the gradient is zero": "c",
        },
    )


def _mean_largest_share(head_size: int, scaled: bool, softmax: bool = True) -> float:
    q, k = torch.randn(2, 4000, 64, head_size, generator=torch.Generator().manual_seed(99))
    scores = (k @ q[:, 0, :, None])[..., 0] / (math.sqrt(head_size) if scaled else 1.0)
    return (scores.softmax(-1) if softmax else scores).amax(-1).mean().item()
