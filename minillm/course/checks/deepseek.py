"""Checks for the exercises of lesson 10. Each names the mistake it recognises.

S cached tokens, H heads, D head size, P rotary channels, R latent rank, E experts. Sizes are odd
and all different, so that a swapped axis cannot pass unnoticed.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data import stories
from minillm.data.packing import IGNORE
from minillm.train import recipes


def decode_latent(student: Callable, *, seed: int = 0) -> None:
    """Values and gradients against expanded keys and values, then the work it takes."""
    random = torch.Generator().manual_seed(seed)

    def inputs(S, H=3, D=5, P=4, R=7, V=6):
        shapes = ((H, D), (H, P), (S, R), (S, P), (H, D, R), (H, V, R))
        return tuple(torch.randn(shape, generator=random) for shape in shapes)

    def expanded(q, q_rope, latents, rope_keys, up_keys, up_values, divisor=9**0.5, rope=1.0):
        keys = torch.einsum("sr,hdr->hsd", latents, up_keys)
        values = torch.einsum("sr,hvr->hsv", latents, up_values)
        scores = torch.einsum("hd,hsd->hs", q, keys) + rope * (q_rope @ rope_keys.T)
        return torch.einsum("hs,hsv->hv", (scores / divisor).softmax(-1), values)

    case = inputs(11)
    mistakes = {
        "your scores are divided by √D; the rotary channels count too: √(D + P)": 5**0.5,
        "your scores are not divided by √(D + P)": 1.0,
        "your scores are divided by √R; absorbing changes the way, not the scores: √(D + P)": (
            7**0.5
        ),
        "your scores are divided by √(R + P); the scale stays √(D + P)": 11**0.5,
    }
    assert_close(
        student(*case),
        expanded(*case),
        name="your output",
        mistakes={
            **{text: expanded(*case, divisor=divisor) for text, divisor in mistakes.items()},
            "you forgot the rotary part of the scores: your tokens have no order": expanded(
                *case, rope=0.0
            ),
        },
    )
    assert_same_gradients(student, expanded, case, name="decode_latent")
    assert_unchanged(student, *case, name="decode_latent")
    refuses(student, *case[:3], case[3][:-1], *case[4:], words="rope_keys")
    long = inputs(200, D=32, R=16, V=32)
    with FlopCounterMode(display=False) as counter:
        student(*long)
    # On the latents: 200 · 3 heads · (16 + 4 + 16), and little for the ends. Expanding keys or
    # values alone would cost 200 · 3 · 32 · 16.
    if counter.get_total_flops() > 2 * 200 * 3 * 32 * 16:
        raise AssertionError(
            "you make keys or values for every cached token: multiply the query with up_keys, and "
            "the average of the latents with up_values"
        )


def step_bias(student: Callable, *, seed: int = 0) -> None:
    """Signs, sizes, and experts that nobody chose."""
    random = torch.Generator().manual_seed(seed)
    bias = torch.randn(6, generator=random)
    # Loads 4 2 3 3 6 0: experts 2 and 3 have exactly the mean; the last is never chosen.
    chosen = torch.tensor([0] * 4 + [1] * 2 + [2] * 3 + [3] * 3 + [4] * 6)
    chosen = chosen[torch.randperm(18, generator=random)].view(9, 2)
    loads = torch.tensor([4.0, 2, 3, 3, 6, 0])
    over = loads - 3
    right = bias - 0.25 * over.sign()
    seen = loads[:5]
    assert_close(
        student(bias, chosen, 0.25),
        right,
        name="your bias",
        mistakes={
            "your signs are turned round: a busy expert must become harder to choose": (
                bias + 0.25 * over.sign()
            ),
            "you change the bias in proportion to the load; only the sign counts": (
                bias - 0.25 * over
            ),
            "you return the change; add it to the old bias": -0.25 * over.sign(),
            "you ignore rate": bias - over.sign(),
            "you compare with the mean of the experts that were chosen; idle ones count too": (
                bias - 0.25 * (loads - seen.mean()).sign()
            ),
            "you count only the first choice of each token; all k count": (
                bias + 0.25 * _first_choice_signs(chosen)
            ),
        },
    )
    assert_unchanged(student, bias, chosen, torch.tensor(0.25), name="step_bias")
    assert_close(
        student(torch.zeros(3), torch.tensor([[0], [0], [1]]), 0.1),
        torch.tensor([-0.1, 0.0, 0.1]),
        name="the example",
    )
    refuses(student, bias, chosen, 0.0, words="rate")


def _first_choice_signs(chosen: Tensor) -> Tensor:
    loads = chosen[:, 0].bincount(minlength=6).float()
    return (loads.mean() - loads).sign()


def future_targets(student: Callable, *, seed: int = 0) -> None:
    """Several documents, some shorter than k, in three rows."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, 99, (3, 12), generator=random)
    targets[2, 10:] = IGNORE
    starts = torch.rand(3, 12, generator=random) < 0.25
    starts[:, 1] = starts[:, 2] = True  # a document of one token
    starts[:, 3:5] = False
    documents = starts.cumsum(1)

    def right(k, same=None):
        same = documents[:, k:] == documents[:, :-k] if same is None else same
        return targets[:, k:].where(same, IGNORE)

    for k in (1, 2, 3):
        neighbours = documents[:, 1:] == documents[:, :-1]
        assert_close(
            student(targets, k, documents),
            right(k),
            name=f"your targets for k={k}",
            mistakes={
                "you ignore the documents: positions are asked for tokens of the next one": (
                    targets[:, k:]
                ),
                "you compare position i only with its neighbour; it must be position i + k": (
                    right(k, neighbours[:, : 12 - k])
                ),
                "you compare position i + k with its neighbour before, not with position i": (
                    right(k, neighbours[:, k - 1 :])
                ),
                "your targets are not moved: position i of module k wants targets[:, i + k]": (
                    targets[:, : 12 - k].where(documents[:, k:] == documents[:, :-k], IGNORE)
                ),
                "you keep the targets of other documents and drop your own": right(
                    k, documents[:, k:] != documents[:, :-k]
                ),
                "positions outside the document must become IGNORE (-100), not 0": targets[
                    :, k:
                ].where(documents[:, k:] == documents[:, :-k], 0),
            },
        )
    assert_unchanged(lambda a, b: student(a, 1, b), targets, documents, name="future_targets")
    for k in (0, 12):
        refuses(student, targets, k, documents, words="k")


def fixed_future_loss(student: Callable, *, seed: int = 0) -> None:
    """The loss with each of the index mistakes, and its gradients."""
    random = torch.Generator().manual_seed(seed)
    B, T, C, V = 3, 7, 5, 11
    hidden = torch.randn(B, T, C, generator=random)
    tokens = torch.randint(V, (B, T), generator=random)
    embedding, unembed = torch.randn(2, V, C, generator=random)
    project = torch.randn(C, 2 * C, generator=random)

    def loss(hidden, tokens, embedding, project, unembed, told=1, swap=False, ahead=2):
        n = T - 2
        parts = [hidden[:, :n], embedding[tokens[:, told : told + n]]]
        pair = torch.cat(parts[::-1] if swap else parts, dim=-1)
        logits = pair @ project.T @ unembed.T
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, ahead : ahead + n].flatten())

    inputs = (hidden, tokens, embedding, project, unembed)
    assert_close(
        student(*inputs),
        loss(*inputs),
        name="your loss",
        mistakes={
            "the bug is still there: position i is told token i + 2, the answer": loss(
                *inputs, told=2
            ),
            "position i is told its own token i, which it has read; it should be i + 1": loss(
                *inputs, told=0
            ),
            "the embedding stands before the hidden state; project expects it behind": loss(
                *inputs, swap=True
            ),
            "your targets are token i + 1, the one the module is told": loss(*inputs, ahead=1),
        },
    )
    assert_same_gradients(student, loss, inputs, name="fixed_future_loss")
    refuses(student, hidden[:, :2], tokens[:, :2], *inputs[2:], words="tokens")


@cache
@torch.no_grad()
def storyteller_heads() -> Tensor:
    """Keys and values of the storyteller's first layer: (tokens, 4 heads, 64 numbers)."""
    model, _ = recipes.load("stories")
    found = []

    def note(attention, inputs):
        _, k, v = attention.heads(inputs[0])  # (B, H, T, D)
        found.append(torch.cat((k, v), dim=-1).transpose(1, 2).flatten(0, 1))

    hook = model.blocks[0].attention.register_forward_pre_hook(note)
    for story in stories.stories(12, seed=3):
        model.hidden(torch.tensor([[stories.END, *stories.encode(story.text)]]))
    hook.remove()
    return torch.cat(found)


def rank_needed(
    student: Callable, joint: object, apart: object, reason: object, *, seed: int = 0
) -> None:
    """Ranks of vectors with a known spread, then the learner's measurement."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(9, 9, generator=random)).Q
    spread = torch.tensor([5.0, 4, 3, 2, 1.5, 1, 0.5, 0.2, 0.1])
    vectors = torch.randn(300, 9, generator=random) * spread @ directions + 10
    for share in (0.8, 0.5, 0.95):
        yours = student(vectors, share)
        assert_type(yours, int, "the rank")
        assert_equal(
            yours,
            _rank(vectors, share),
            name=f"the rank for share={share}",
            mistakes={
                "you return one too few: r directions must keep at least the share": (
                    _rank(vectors, share) - 1
                ),
                "you did not subtract the mean: it takes a direction of its own": _rank(
                    vectors, share, centre=False
                ),
                "you add up singular values; variances are their squares": _rank(
                    vectors, share, power=1
                ),
            },
        )
    refuses(student, vectors, 1.0, words="share")
    heads = storyteller_heads()
    right = {
        "joint": _rank(heads.flatten(1), 0.9),
        "apart": sum(_rank(heads[:, h], 0.9) for h in range(heads.shape[1])),
    }
    for name, yours in (("joint", joint), ("apart", apart)):
        other = right["apart" if name == "joint" else "joint"]
        mistakes = {"you have joint and apart the wrong way round": other}
        assert_equal(yours, right[name], name=name, mistakes=mistakes)
    assert_equal(
        reason,
        "a",
        name="reason",
        mistakes={
            "(b) is not so: with many rows, unrelated random heads save hardly anything jointly; "
            "yours need about a third": "b",
            "(c) cannot be: your two numbers differ by far more than one": "c",
        },
    )


def _rank(vectors: Tensor, share: float, centre: bool = True, power: int = 2) -> int:
    if centre:
        vectors = vectors - vectors.mean(0)
    kept = torch.linalg.svdvals(vectors).pow(power).cumsum(0)
    return math.ceil((kept < share * kept[-1]).sum().item()) + 1
